"""Windows of items are bounded in items and in pixels, and images are decoded in copies."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unime import UniMEModel, load_model, windows_unime
from unime.processing_unime import item_hash, normalize_item, to_rgb
from unime.windows_unime import read_windows, windows


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a smooth image with the content of a seed."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, image_format: str, **options) -> io.BytesIO:
    """Return an image file."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ([0] * 7, [[0, 0, 0], [0, 0, 0], [0]]),
        ([4, 4, 4, 1], [[4, 4], [4, 1]]),
        ([20, 1, 20, 3], [[20], [1], [20], [3]]),
        ([10, 0, 0, 0], [[10, 0, 0], [0]]),
        ([], []),
    ],
)
def test_a_window_ends_before_either_bound_is_exceeded(pixels: list[int], expected: list[list[int]]) -> None:
    assert list(windows(pixels, int, max_values=3, max_pixels=10)) == expected


def test_windows_hold_the_items_in_order_with_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_unime, "MAX_WINDOW_PIXELS", 2 * 40 * 30)
    images = [photograph(40, 30, seed) for seed in range(5)]
    items = ["a", images[0], {"text": "b", "image": images[1:3]}, images[3], images[0], *"cdef", images[4]]
    read = list(read_windows(items, max_items=4))
    assert [len(window) for window in read] == [2, 1, 4, 3]
    normalized = [normalize_item(item, index) for index, item in enumerate(items)]
    assert [pair for window in read for pair in window] == [(item_hash(item), item) for item in normalized]


def test_large_images_are_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_unime, "MAX_HASHED_PIXELS", 40 * 30)
    small, large = photograph(40, 30, 0), photograph(40, 31, 0)
    items = [small, large, "a", large, small, {"text": "a", "image": large}]
    keys = [key for window in read_windows(items, max_items=4) for key, _ in window]
    assert keys[0] == keys[4] == item_hash(normalize_item(small, 0)) and keys[2] == item_hash(normalize_item("a", 0))
    assert len({*keys}) == len(items) - 1 and [keys[index] for index in (1, 3, 5)] == [-2, -4, -6]


def test_the_first_malformed_item_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_unime, "MAX_WINDOW_PIXELS", 1)
    damaged = Image.open(io.BytesIO(encoded(photograph(90, 90), "JPEG").getvalue()[:1000]))
    with pytest.raises(ValueError, match="item 1: its image cannot be read"):
        list(read_windows([photograph(3, 3), damaged, {"text": 3}], max_items=10))


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {"save_all": True, "append_images": [photograph(30, 40, 2)]}),
        ("GIF", {"save_all": True, "append_images": [photograph(30, 40, 2)]}),
        ("MPO", {"save_all": True, "append_images": [photograph(30, 40, 2)]}),
    ],
)
@pytest.mark.parametrize("frame", [0, 1])
def test_an_opened_file_is_decoded_in_a_copy(image_format: str, options: dict, frame: int, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(encoded(photograph(30, 40, 1), image_format, **options).getvalue())

    def opened(source: Path | io.BytesIO) -> Image.Image:
        image = Image.open(source)
        if options.get("save_all"):
            image.seek(frame)
        return image

    decoded = opened(file)
    decoded.load()
    for source in (file, io.BytesIO(file.read_bytes())):
        image = opened(source)
        undecoded = image._im
        for _ in range(2):
            assert to_rgb(image).tobytes() == to_rgb(decoded).tobytes()
        assert image._im is undecoded
        assert image.convert("RGB").tobytes() == decoded.convert("RGB").tobytes()  # usable as before


def test_a_copy_keeps_the_draft_mode_of_an_opened_jpeg() -> None:
    file = encoded(photograph(64, 48), "JPEG")
    image = Image.open(file)
    image.draft("L", (32, 24))
    converted = to_rgb(image)
    assert converted.size == (32, 24)
    assert converted.tobytes() == image.convert("RGB").tobytes()


@pytest.mark.slow
def test_sixty_opened_photographs_of_12_megapixels_take_the_memory_of_one_window(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model, processor = load_model(str(tiny_model("qwen2-vl")))
    path = tmp_path / "photograph.jpg"
    photograph(4000, 3000).save(path)
    model.encode(Image.open(path), processor)
    items = [{"image": Image.open(path), "instruction": f"Number {index}:"} for index in range(60)]
    before, peak = peak_memory(model, items, processor)
    assert peak - before < 400e6, f"{(peak - before) / 1e6:.0f} MB"
    assert all(item["image"]._im is None for item in items)
    assert np.asarray(items[7]["image"]).shape == (3000, 4000, 3)


def peak_memory(model: UniMEModel, *arguments) -> tuple[int, int]:
    """Return the resident bytes before encoding and their maximum during it."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # resets the maximum
    before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) * 1024
    model.encode(*arguments)
    return before, int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024
