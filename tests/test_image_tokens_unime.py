"""Tokens and patches that are counted from the size of an image are those that the processor makes."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import PATCH_PIXELS, TINY_MODELS
from transformers import AutoConfig, ProcessorMixin, SiglipImageProcessor

from unime import processor_from_backbone
from unime.image_tokens_unime import count_image_tokens, count_patches, vision_token_equivalents


THIN = [(1, 1), (2, 3), (1, 199), (199, 1), (1, 201), (201, 1), (3, 900), (900, 3), (1500, 20)]
ROUND = [(31, 31), (32, 32), (33, 32), (64, 64), (65, 64), (336, 336), (640, 480), (480, 640), (1000, 250)]
RANDOM = random.Random(0)
HUGE = {"longest_edge": 5000}  # above the limit of Idefics3
ITEMS = [
    *([size] for size in THIN + ROUND),
    *([(RANDOM.randint(1, 700), RANDOM.randint(1, 700)) for _ in range(number)] for number in [1, 2, 3] * 8),
]


def blank_images(processor: ProcessorMixin, sizes: list[tuple[int, int]]) -> tuple[int, int] | str:
    """Return the tokens and the patches that the processor makes of blank images, or its error."""
    images = [Image.new("RGB", size) for size in sizes]
    text = processor.image_token * len(sizes)
    try:
        output = processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt")
    except ValueError as error:
        return str(error)
    pixels = output["pixel_values"]
    if pixels.ndim == 2:  # Qwen-VL: one row per patch
        return output["input_ids"].shape[1], len(pixels)
    tiles = pixels.flatten(0, -4)
    real = tiles.flatten(1).any(dim=1).sum().item()  # the tiles that pad an image to the largest are zero
    return output["input_ids"].shape[1], real * (tiles.shape[-2] // PATCH_PIXELS) * (tiles.shape[-1] // PATCH_PIXELS)


def counted(processor: ProcessorMixin, sizes: list[tuple[int, int]]) -> tuple[int, int] | str:
    """Return the tokens and the patches that are counted, or the error."""
    try:
        return count_image_tokens(processor, sizes), count_patches(processor, sizes, PATCH_PIXELS)
    except ValueError as error:
        return str(error)


def test_counts_and_errors_are_those_of_the_processor(processor: ProcessorMixin) -> None:
    assert {tuple(sizes): counted(processor, sizes) for sizes in ITEMS} == {
        tuple(sizes): blank_images(processor, sizes) for sizes in ITEMS
    }


def test_a_processor_whose_arithmetic_is_not_tested_is_asked(
    processor: ProcessorMixin, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = type("OtherProcessor", (type(processor),), {})
    expected = counted(processor, [(100, 60)])
    monkeypatch.setattr(processor, "__class__", other)
    assert counted(processor, [(100, 60)]) == expected


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2-vl", {"size": {"shortest_edge": 16**2, "longest_edge": 100 * 16**2}}),
        ("llava", {"crop_size": {"height": 40, "width": 40}}),
        ("llava-next", {"image_grid_pinpoints": [[24, 72], [72, 24]]}),
        ("llava-onevision", {"image_grid_pinpoints": [[24, 72], [72, 24]]}),
        ("smolvlm", {"size": {"longest_edge": 80}}),
        ("smolvlm", {"size": {"longest_edge": 100}, "do_image_splitting": False}),
        ("idefics3", {"size": {"longest_edge": 16}}),
        ("idefics3", {"size": HUGE, "max_image_size": {"longest_edge": 600}}),
    ],
)
def test_counts_follow_the_settings_of_the_image_processor(family: str, settings: dict) -> None:
    _, processor = TINY_MODELS[family]()
    for name, value in settings.items():
        setattr(processor.image_processor, name, value)
    for size in [(1, 30), (90, 9), (50, 10), (30, 90)][: 2 if settings.get("size") == HUGE else 4]:
        assert counted(processor, [size]) == blank_images(processor, [size])


def test_a_llava_with_siglip_which_crops_nothing_is_counted() -> None:
    _, processor = TINY_MODELS["llava"]()
    processor.image_processor = SiglipImageProcessor(size={"height": 40, "width": 48})
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "full", 0
    for sizes in ([(30, 90)], [(90, 9), (50, 10)]):
        assert counted(processor, sizes) == blank_images(processor, sizes) == (30 * len(sizes), 30 * len(sizes))


def test_a_patch_is_worth_its_share_of_the_layers_of_a_token(tiny_model: Callable[[str], Path]):
    processor = processor_from_backbone(str(tiny_model("qwen2-vl")))
    config = AutoConfig.from_pretrained(tiny_model("qwen2-vl"))
    config.vision_config.depth, config.vision_config.embed_dim = 32, 1280  # of Qwen2-VL-2B
    config.text_config.num_hidden_layers, config.text_config.hidden_size = 28, 1536
    tokens = vision_token_equivalents(processor, [(32, 32), (16, 64)], config)
    assert tokens == pytest.approx((4 * 4 + 2 * 8) * 32 * 1280 / (28 * 1536))
