"""The image size: what a processor makes of an image, and that everything that loads a checkpoint reads it alike."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, ProcessorMixin

from unime import load_model, processor_from_backbone, save_checkpoint
from unime.cli.options import load_onto
from unime.eval.encoders.loading import load_encoder
from unime.export.plain import export_plain
from unime.image_size import parse_image_size, set_image_size
from unime.index.index import Index


# One tile of the tiny models with tiles, and 2 of the 16 tokens of those without.
SIZES = {"llava-next": 24, "llava-onevision": 24, "qwen2-vl": 24, "smolvlm": 32}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8))
TURNED = PHOTO.transpose(Image.Transpose.ROTATE_90)
ITEMS = [PHOTO, {"image": TURNED, "text": "turned", "instruction": "Look:"}, "text"]


def image_tokens(processor: ProcessorMixin, *sizes: tuple[int, int]) -> list[int]:
    """Return how many tokens an image of each (width, height) takes."""
    images = [[Image.new("RGB", size)] for size in sizes]
    texts = [processor.image_token] * len(sizes)
    return [len(tokens) for tokens in processor(text=texts, images=images, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize(
    "name", ["qwen2-vl", *(pytest.param(name, marks=pytest.mark.slow) for name in SIZES if name != "qwen2-vl")]
)
def test_whoever_loads_a_checkpoint_reads_images_at_its_size(
    name: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    backbone, saved = str(tiny_model(name)), tmp_path / "saved"
    model, processor = load_model(backbone, image_size=SIZES[name], dtype="float32")
    expected = model.encode(ITEMS, processor)
    native, native_processor = load_model(backbone, dtype="float32")
    assert np.abs(native.encode(ITEMS, native_processor) - expected)[:2].max() > 1e-3
    save_checkpoint(model, processor, saved)

    def same(embeddings: np.ndarray) -> None:
        np.testing.assert_allclose(embeddings, expected, atol=1e-5)

    again, again_processor = load_model(str(saved), dtype="float32")
    same(again.encode(ITEMS, again_processor))
    same(AutoModel.from_pretrained(saved, dtype="float32").encode(ITEMS))
    served, served_processor = load_onto(str(saved), "float32", "cpu", None)
    same(served.encode(ITEMS, served_processor))
    same(load_encoder(backbone, image_size=str(SIZES[name])).encode(ITEMS))
    export_plain(again, again_processor, tmp_path / "plain")
    for folder in (saved, tmp_path / "plain"):
        sentences = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
        same(
            np.stack(
                [
                    sentences.encode(PHOTO),
                    sentences.encode({"image": TURNED, "text": "turned"}, prompt="Look:"),
                    sentences.encode("text"),
                ]
            )
        )


@pytest.mark.parametrize("name", SIZES)
def test_a_number_limits_the_pixels_and_a_small_image_is_not_enlarged_beyond_a_tile(
    name: str, tiny_model: Callable[[str], Path]
) -> None:
    processor = processor_from_backbone(tiny_model(name))
    native = image_tokens(processor, (1000, 1000))
    set_image_size(processor, SIZES[name])
    limited, small = image_tokens(processor, (1000, 1000), (SIZES[name], SIZES[name]))
    assert limited == small < native[0]


def test_arguments_of_the_image_processor_are_a_dict_or_json(tiny_model: Callable[[str], Path]) -> None:
    processor = processor_from_backbone(tiny_model("qwen2-vl"))
    set_image_size(processor, {"max_pixels": 9 * 16**2})
    assert dict(processor.image_processor.size)["longest_edge"] == 9 * 16**2
    assert image_tokens(processor, (500, 500)) == [9]
    set_image_size(processor, '{"min_pixels": 256, "max_pixels": 1024}')
    assert image_tokens(processor, (500, 500), (8, 8)) == [4, 1]
    before = processor.image_processor
    set_image_size(processor, None)
    assert processor.image_processor is before


@pytest.mark.parametrize(("value", "size"), [("336", 336), (336, 336), ("null", None), ('{"size": 1}', {"size": 1})])
def test_a_size_is_a_number_a_dict_or_json(value: object, size: object) -> None:
    assert parse_image_size(value) == size


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "large", "[1]", {}, "1e3"])
def test_another_value_is_refused_in_one_sentence(value: object) -> None:
    with pytest.raises(ValueError, match="image_size must be a positive number of pixels, such as 336, or arguments"):
        parse_image_size(value)


def test_what_a_processor_cannot_do_is_refused_in_one_sentence(tiny_model: Callable[[str], Path]) -> None:
    fixed = processor_from_backbone(tiny_model("llava"))
    with pytest.raises(ValueError, match="CLIPImageProcessor has no size that a number could limit: leave image_size"):
        set_image_size(fixed, 336)
    with pytest.raises(ValueError, match="num_crops, which CLIPImageProcessor does not take: its arguments are crop_"):
        set_image_size(fixed, {"num_crops": 4})
    tiles = processor_from_backbone(tiny_model("llava-next"))
    with pytest.raises(ValueError, match="image_grid_pinpoints of this LlavaNextImageProcessor end at 48 pixels"):
        set_image_size(tiles, 336)


def test_a_model_and_its_processor_have_the_same_grids_of_tiles(tiny_model: Callable[[str], Path]) -> None:
    model, processor = load_model(str(tiny_model("llava-next")), image_size=24)
    grids = processor.image_processor.image_grid_pinpoints
    assert grids == [[24, 24]]
    assert model.config.backbone_config.image_grid_pinpoints == model.backbone.config.image_grid_pinpoints == grids


def test_an_index_keeps_the_image_size_of_its_embeddings(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    Index.create(tmp_path / "index", str(tiny_model("qwen2-vl")), image_size=24)
    assert Index.open(tmp_path / "index").record.image_size == 24
