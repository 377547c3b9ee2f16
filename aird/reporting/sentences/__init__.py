"""The results in words, from the tables and the statements of the claims: what the report and `print_summary` say."""
