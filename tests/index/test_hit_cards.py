"""Cards of search results: their titles, and identical results."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unime.index.hit_cards import Card, fold_hits
from unime.index.index import Hit


def card(id: str, text: str | None = None, **metadata: Any) -> Card:
    return Card([Hit(id, 0.5, text, None, metadata)], None)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a/b/photo.v2.jpeg", "photo.v2"),
        ("x.HEIC", "x"),
        ("pizza", "pizza"),
        ("v1.5 notes", "v1.5 notes"),
        ("a.txt", "a.txt"),
    ],
)
def test_only_names_of_image_files_are_shortened(name: str, shown: str) -> None:
    assert card(name).name == shown


def test_the_caption_is_the_text_or_what_the_metadata_calls_the_entry() -> None:
    assert card("a.jpg", "a cat", caption="a dog").caption == "a cat"
    assert card("a.jpg", title="Dog", caption="a dog").caption == "a dog"
    assert card("pizza", name="pizza").caption is None
    assert card("a.jpg", title="Dog", category="pets").metadata == {"category": "pets"}
    assert card("a.jpg", caption="", name=3, category="pets").caption is None


def test_results_with_equal_images_and_texts_share_a_card(tmp_path: Path) -> None:
    for name, colour in {"a": "red", "b": "red", "c": "green"}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")

    def hit(name: str, text: str | None = None) -> Hit:
        return Hit(name, 0.5, text, str(tmp_path / f"{name}.png"), {})

    cards = fold_hits([hit("c"), hit("a"), hit("b"), hit("b", "a caption"), hit("gone"), hit("lost")])
    assert [[result.id for result in card.hits] for card in cards] == [["c"], ["a", "b"], ["b"], ["gone"], ["lost"]]
    assert [bool(card.image) for card in cards] == [True, True, True, False, False]
    words = [Hit("1", 0.5, "same", None, {}), Hit("2", 0.5, "same", None, {}), Hit("3", 0.5, "other", None, {})]
    assert [len(card.hits) for card in fold_hits(words)] == [1, 1, 1]
