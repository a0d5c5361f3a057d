"""What an evaluation writes: tables, the HTML report, and model cards."""
