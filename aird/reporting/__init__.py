"""From scores to tables, claims, the results in words, figures and the report."""
