"""Random changes of training images."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unime.data.collator import ContrastiveCollator, EvaluationCollator
from unime.data.image_augmentation import IMAGE_AUGMENTATIONS, SIZES, ImageAugmentation


BLUE, BLACK = (0, 0, 255), (0, 0, 0)
SEEDS = range(40)


def drawing(outline=None):
    """A blue square on a transparent background, left of the centre."""
    image = Image.new("RGBA", (96, 96))
    ImageDraw.Draw(image).rectangle((10, 30, 50, 70), fill=(*BLUE, 255), outline=outline, width=2 if outline else 0)
    return image


def changed(kind, image, seed=0):
    return np.asarray(ImageAugmentation([kind]).image(image, random.Random(seed))).astype(int)


def box(pixels):
    rows, columns = np.nonzero((pixels != 255).any(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_size_scales_the_object_and_moves_it_to_the_centre():
    sizes = set()
    for seed in SEEDS:
        left, top, right, bottom = box(changed("size", drawing(), seed))
        sizes.add(right - left)
        assert round(SIZES[0] * 96) - 1 <= max(right - left, bottom - top) <= 96
        assert abs(left + right - 96) <= 12 and abs(top + bottom - 96) <= 12
    assert len(sizes) > 10


def test_the_background_is_light_dark_coloured_or_textured_and_the_object_stays():
    corners = []
    for seed in SEEDS:
        pixels = changed("background", drawing(), seed)
        assert (pixels[32:68, 12:48] == BLUE).all()
        corners.append(pixels[0, 0].mean())
    assert min(corners) < 80 and max(corners) > 200
    assert any(len(np.unique(changed("background", drawing(), seed)[:10], axis=1)) > 1 for seed in SEEDS)


def test_an_outline_is_added_or_removed():
    dark = {"plain": [], "outlined": []}
    for seed in SEEDS:
        for name, image in (("plain", drawing()), ("outlined", drawing(BLACK))):
            dark[name].append((changed("outline", image, seed).max(axis=-1) < 70).sum())
    assert min(dark["plain"]) == 0 and max(dark["plain"]) > 100  # an outline was added
    assert min(dark["outlined"]) == 0 and max(dark["outlined"]) > 300  # it was removed, or a second one added


def test_mixed_colours_keep_greys_and_change_the_rest():
    grey, red = (Image.new("RGB", (8, 8), colour) for colour in ((120, 120, 120), (200, 30, 30)))
    assert all(np.abs(changed("colours", grey, seed) - 120).max() <= 1 for seed in SEEDS)
    reds = np.array([changed("colours", red, seed)[0, 0] for seed in SEEDS])
    assert reds.std(axis=0).min() > 3
    assert (reds.argmax(axis=1) == 0).all()


def test_resolution_blurs_some_images():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    steps = [np.abs(np.diff(changed("resolution", noise, seed), axis=1)).mean() for seed in SEEDS]
    unchanged = np.abs(np.diff(np.asarray(noise).astype(int), axis=1)).mean()
    assert max(steps) == pytest.approx(unchanged) and min(steps) < 0.5 * unchanged
    assert 0.5 < np.mean(np.isclose(steps, unchanged)) < 0.9


@pytest.mark.parametrize("kind", ["size", "outline", "background"])
def test_what_depends_on_transparency_leaves_an_opaque_image_as_it_is(kind):
    opaque = drawing().convert("RGB")
    assert all((changed(kind, opaque, seed) == np.asarray(opaque)).all() for seed in SEEDS)


def test_the_seed_and_the_batch_determine_the_changes():
    items = [{"image": drawing(), "text": "blue"}, "a text", drawing()]

    def pixels(seed, batch):
        return [
            np.asarray(item["image"][0] if "image" in item else item["content"][0]).tobytes()
            for item in ImageAugmentation(IMAGE_AUGMENTATIONS, seed)(items, batch)
            if not isinstance(item, str)
        ]

    first = pixels(1, [5, 6, 7])
    assert first == pixels(1, [5, 6, 7])
    assert first[0] != first[1]  # each image is drawn by itself
    assert first != pixels(2, [5, 6, 7]) and first != pixels(1, [5, 6, 8])


def test_texts_instructions_and_order_stay():
    image = drawing()
    items = [
        "a text",
        {"image": image, "text": "blue", "instruction": "Find it."},
        {"content": ["before", image, "after"], "instruction": "Read it."},
        [image, "after"],
    ]
    text, described, ordered, listed = ImageAugmentation(["size"])(items, [1])
    assert text == "a text"
    assert described["text"] == "blue" and described["instruction"] == "Find it." and len(described["image"]) == 1
    assert [part if isinstance(part, str) else "image" for part in ordered["content"]] == ["before", "image", "after"]
    assert ordered["instruction"] == "Read it." and listed["content"][1] == "after"


def test_only_training_batches_are_changed_and_hashes_stay():
    seen = []

    def prepare(items):
        seen.append(items)
        return [([index], {}) for index in range(len(items))]

    row = {"query": "blue", "positive": {"image": drawing()}, "negatives": [], "task": "colours", "label": None}
    plain = ContrastiveCollator(prepare)
    augmented = ContrastiveCollator(prepare, ImageAugmentation(IMAGE_AUGMENTATIONS))
    batches = [plain([row]), augmented([row]), EvaluationCollator(augmented, row)([row])]
    assert all(batch["identity"].tolist() == batches[0]["identity"].tolist() for batch in batches)
    assert seen[0] == seen[2] == ["blue", {"image": [row["positive"]["image"]]}]
    assert seen[1][0] == "blue" and seen[1][1]["image"][0].mode == "RGB"


def test_unknown_and_repeated_kinds_are_refused():
    with pytest.raises(ValueError, match="no image augmentation 'blur': choose from size, outline"):
        ImageAugmentation(["blur"])
    with pytest.raises(ValueError, match="names a kind twice"):
        ImageAugmentation(["size", "size"])
