"""From scores to tables, claims, the finding in words, figures and the report."""
