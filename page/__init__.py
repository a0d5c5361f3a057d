"""The web page of `app.py`: the collections that it searches, the HTML that it renders, and its style."""

from ..extras import require_extra


require_extra("page", "gradio")
