"""The page of the published embedders shows the presets as they are."""

from published_page import PAGE, page


def test_the_tables_of_the_page_are_those_of_the_presets() -> None:
    assert PAGE.read_text() == page(), "run `python tests/published_page.py`"
