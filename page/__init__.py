"""The web page that `app.py` opens: what it searches, what it draws, and how it looks."""
