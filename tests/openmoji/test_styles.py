"""Styles of other artists, on a small package with the layout of the published ones."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from unime.openmoji import styles
from unime.openmoji.catalogue import catalogue
from unime.openmoji.dataset import draw_image, in_style, openmoji_rows
from unime.openmoji.vocabulary import objects, sprites


CODES = {entry.code: entry.index for entry in catalogue()}
PIZZA, HEART = CODES["1F355"], CODES["2764-FE0F"]
LEFT, RIGHT = CODES["1F448"], CODES["1F449"]


def square(colour: str, size: int, width: int | None = None) -> str:
    return f'<path fill="{colour}" d="M0 0h{width or size}v{size}H0z"/>'


ICONS = {
    "width": 36,
    "height": 36,
    "icons": {
        "pizza": {"body": square("#f00", 36)},
        "red-heart": {"body": square("#f00", 72), "width": 72, "height": 72},
        "point-left": {"body": square("#00f", 36, 18)},
        "tall": {"body": square("#0f0", 72, 36), "height": 72},
    },
    "aliases": {"point-right": {"parent": "point-left", "hFlip": True}, "right": {"parent": "point-right"}},
}
CHARS = {"1f355": "pizza", "2764": "red-heart", "1f448": "point-left", "1f449": "right", "1f600": "tall"}
CHARS |= {entry.code.lower(): "pizza" for entry in catalogue() if entry.subcategory == "family"}


def clear() -> None:
    for function in (styles.style_drawings, styles.has_drawing, sprites):
        function.cache_clear()


@pytest.fixture(scope="module")
def twemoji(tmp_path_factory: pytest.TempPathFactory):
    """Put a small package in the place of Twemoji's, in a cache folder of its own."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        for name, content in (("icons", ICONS), ("chars", CHARS)):
            encoded = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(encoded)
            opened.addfile(member, io.BytesIO(encoded))
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(styles, "cache_folder", lambda: folder)
        sha256 = hashlib.sha256(archive.getvalue()).hexdigest()
        package = replace(styles.PACKAGES["twemoji"], sha256=sha256)
        patch.setitem(styles.PACKAGES, "twemoji", package)
        package.archive.write_bytes(archive.getvalue())
        clear()
        yield package
    clear()


def test_icons_are_mapped_by_code_points_without_variation_selectors(twemoji):
    drawn = set(np.flatnonzero(styles.has_drawing("twemoji")))
    assert {PIZZA, HEART, LEFT, RIGHT, CODES["1F600"]} <= drawn
    assert len(drawn) == len(CHARS)


def test_an_icon_is_drawn_in_its_own_view_box(twemoji):
    drawings = styles.style_drawings("twemoji")
    assert drawings.shape == (len(catalogue()), 96, 96, 4)
    assert (drawings[HEART] == (255, 0, 0, 255)).all()  # 72 units wide, in a package of 36
    tall = drawings[CODES["1F600"]]
    assert (tall[:, 24:72] == (0, 255, 0, 255)).all() and not tall[:, :24].any() and not tall[:, 72:].any()


def test_an_alias_may_flip_its_parent(twemoji):
    left, right = styles.style_drawings("twemoji")[[LEFT, RIGHT]]
    assert left[:, :48, 3].all() and not left[:, 48:].any()
    assert (right == left[:, ::-1]).all()


def test_drawings_are_rendered_once(twemoji):
    file = styles.style_drawings("twemoji").filename
    clear()
    assert styles.style_drawings("twemoji").filename == file


def test_a_spec_is_drawn_in_a_style_that_has_its_emoji(twemoji):
    view = f"view {PIZZA}.96.0.0.0"
    assert in_style(view, "openmoji") == view
    assert in_style(view, "twemoji") == f"{view} @twemoji"
    assert in_style(view, "twemoji", transparent=True) == f"view {PIZZA}.96.0.0.-1 @twemoji"
    missing = f"view {CODES['1F601']}.96.0.0.0"
    assert in_style(missing, "twemoji") == missing
    assert (np.asarray(draw_image(f"{view} @twemoji")) == (255, 0, 0)).all()
    transparent = draw_image(f"view {LEFT}.90.3.3.-1 @twemoji")
    assert transparent.mode == "RGBA" and transparent.getbbox() == (3, 3, 49, 93)  # half a pixel is smoothed


def test_scenes_and_crops_are_drawn_in_a_style(twemoji):
    pizza = next(index for index, entry in enumerate(objects()) if entry.image == PIZZA)
    other = next(index for index, entry in enumerate(objects()) if not styles.has_drawing("twemoji")[entry.image])
    scene = in_style(f"scene {pizza}.4.0", "twemoji")
    assert scene == f"scene {pizza}.4.0 @twemoji"
    assert in_style(f"scene {pizza}.4.0 {other}.5.0", "twemoji") == f"scene {pizza}.4.0 {other}.5.0"
    crop = np.asarray(draw_image(in_style(f"crop {pizza}.0", "twemoji")))
    assert (crop[4:28, 4:28] == (255, 0, 0)).all()
    assert (np.asarray(draw_image(scene))[32:64, 32:64] == crop).all()


def test_rows_and_conversations_use_the_styles_and_keep_their_contents(twemoji):
    def stored(**options):
        return openmoji_rows(
            "train", 400, seed=987, tasks=["scene_t2i", "people_t2i", "name_i2t"], **options
        ).with_format(None)

    plain, styled = stored(), stored(styles=["twemoji"], transparent=True)
    num_styled = 0
    for before, after in zip(plain, styled, strict=True):
        assert before["label"] == after["label"]
        for first, second in (
            (before["query"], after["query"]),
            (before["positive"], after["positive"]),
            *zip(before["negatives"], after["negatives"], strict=True),
        ):
            expected = first["image"] and in_style(first["image"], "twemoji", transparent=True)
            assert second == first | {"image": expected}
            num_styled += bool(expected) and expected.endswith("@twemoji")
    assert num_styled


def test_names_map_to_slugs_without_ambiguity():
    icons = {
        "icons": dict.fromkeys(("cat", "cat-face", "keycap-1", "pizza"), {}),
        "aliases": {"cheese": {}, "tiger": {}},
    }
    names = {catalogue()[index].name: slug for index, slug in styles._slugs_by_name(icons).items()}
    # "cheese" is an alias of the cheese wedge; "tiger" is the name of one emoji and an alias of the tiger face.
    expected = {"cat": "cat", "cat face": "cat-face", "keycap 1": "keycap-1", "pizza": "pizza"}
    assert names == expected | {"cheese wedge": "cheese", "tiger": "tiger"}


def test_the_held_out_style_is_refused_in_training():
    with pytest.raises(ValueError, match="'emojione' is held out"):
        openmoji_rows("train", 10, styles=["openmoji", "emojione"])
    with pytest.raises(ValueError, match="no style 'apple': choose from openmoji, twemoji, noto, fluent"):
        openmoji_rows("train", 10, styles=["apple"])
    with pytest.raises(ValueError, match="each once"):
        openmoji_rows("train", 10, styles=["noto", "noto"])


def test_a_missing_or_different_package_is_an_error_with_the_command(twemoji):
    with pytest.raises(FileNotFoundError, match=r"npm pack --pack-destination .* @iconify-json/noto@1\.2\.9"):
        styles.style_drawings("noto")
    styles.PACKAGES["noto"].archive.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not @iconify-json/noto 1.2.9: delete it and fetch it again"):
        styles.style_drawings("noto")
