"""The output of an evaluation: tables, the HTML report, and model cards."""
