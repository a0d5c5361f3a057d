"""The image size: what a processor makes of an image, and that everything that loads a checkpoint reads it alike."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from sentence_transformers import SentenceTransformer
from tiny_models import TINY_MODELS
from transformers import (
    AutoModel,
    LlavaNextImageProcessor,
    LlavaOnevisionImageProcessor,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    SmolVLMImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor

from unime import load_model, processor_from_backbone, save_checkpoint
from unime.checkpoint import load_processor
from unime.cli.options import load_onto
from unime.eval.encoders.loading import load_encoder
from unime.export.plain import export_plain
from unime.image_processing_phi3_v import Phi3VImageProcessor
from unime.image_size import draft_for, parse_image_size, set_image_size, size_as_read
from unime.image_tokens_unime import count_image_tokens, count_patches
from unime.index.index import Index


# One tile of the tiny models with tiles, and 2 of the 16 tokens of those without.
SIZES = {"llava-next": 24, "llava-onevision": 24, "qwen2-vl": 24, "smolvlm": 32, "phi3-v": 32}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8))
TURNED = PHOTO.transpose(Image.Transpose.ROTATE_90)
ITEMS = [PHOTO, {"image": TURNED, "text": "turned", "instruction": "Look:"}, "text"]


# The tiny model with the same tokens for images, the image processor of the published checkpoint, pixels of a patch.
QWEN2_VL = {"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}
QWEN3_VL = {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
SMOLVLM2 = {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}}
LLAVA_NEXT = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
PUBLISHED: dict[str, tuple[str, BaseImageProcessor, int]] = {
    "Qwen2-VL, Qwen2.5-VL": ("qwen2-vl", Qwen2VLImageProcessor(**QWEN2_VL), 14),
    "Qwen3-VL": ("qwen3-vl", Qwen2VLImageProcessor(**QWEN3_VL), 16),
    "SmolVLM2-2.2B": ("smolvlm", SmolVLMImageProcessor(**SMOLVLM2), 14),
    "LLaVA-1.6": ("llava-next", LlavaNextImageProcessor(**LLAVA_NEXT), 14),
    "LLaVA-OneVision": ("llava-onevision", LlavaOnevisionImageProcessor(), 14),
    "Phi-3.5-Vision": ("phi3-v", Phi3VImageProcessor(), 14),
}
TABLE_SIZES = [(336, 336), (4000, 3000)]


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
    same(AutoModel.from_pretrained(saved, trust_remote_code=True, dtype="float32").encode(ITEMS))
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


def published(backbone: str) -> tuple[ProcessorMixin, int]:
    """Return the processor of a published checkpoint, apart from its tokenizer, and the pixels of a patch."""
    name, image_processor, patch_size = PUBLISHED[backbone]
    _, processor = TINY_MODELS[name]()
    processor.image_processor = image_processor
    processor.tokenizer.add_tokens("\n\n")  # which stands between the tiles of SmolVLM and is one token
    sizes = {"patch_size": 14, "num_image_tokens": 729, "image_seq_len": 81}
    for attribute in sizes.keys() & vars(processor).keys():
        setattr(processor, attribute, sizes[attribute])
    return processor, patch_size


def table_row(backbone: str, image_size: int | None) -> str:
    processor, patch_size = published(backbone)
    set_image_size(processor, image_size)
    counts = [
        count
        for size in TABLE_SIZES
        for count in (count_image_tokens(processor, [size]), count_patches(processor, [size], patch_size))
    ]
    cells = [backbone, str(image_size or "default"), *(f"{count:,}" for count in counts)]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_the_table_of_the_docs_is_what_the_processors_do(backbone: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "concepts" / "image-size.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(f"| {backbone} |") and line.count("|") == 7]
    assert rows == [table_row(backbone, image_size) for image_size in (None, 336, 672)]


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_published_processors_read_photos_at_336_pixels(backbone: str) -> None:
    processor, patch_size = published(backbone)
    set_image_size(processor, 336)
    size = (1200, 900)
    pixels = processor.image_processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"]
    # Patches of shape (patches, values), or tiles of shape (..., tiles, channels, height, width).
    patches = len(pixels) if pixels.ndim == 2 else pixels.shape[:-3].numel() * (pixels.shape[-1] // patch_size) ** 2
    assert patches == count_patches(processor, [size], patch_size) <= 2 * 27**2
    assert image_tokens(processor, size) == [count_image_tokens(processor, [size])]


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


def opened(size: tuple[int, int], image_format: str = "JPEG", orientation: int = 1) -> Image.Image:
    """Return an opened file of a white image."""
    file, exif = BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", size, "white").save(file, image_format, exif=exif)
    return Image.open(file)


@pytest.mark.parametrize(
    ("name", "image_size", "expected"),
    [
        ("LLaVA-1.6", None, (2000, 1500)),  # reads 672 x 504
        ("LLaVA-OneVision", None, (4000, 3000)),  # 2304 x 1728
        ("LLaVA-OneVision", 384, (1000, 750)),  # 384 x 288
        ("SmolVLM2-2.2B", None, (4000, 3000)),  # 1536 x 1152
        ("SmolVLM2-2.2B", 768, (2000, 1500)),  # 768 x 576
        ("Qwen2-VL, Qwen2.5-VL", None, (4000, 3000)),  # 3,600 pixels wide at most
        ("Qwen2-VL, Qwen2.5-VL", 336, (1000, 750)),  # 364 x 280
    ],
)
def test_a_draft_has_at_least_twice_the_size_that_is_read(
    tiny_model: Callable[[str], Path], name: str, image_size: int | None, expected: tuple[int, int]
):
    tiny, image_processor, _ = PUBLISHED[name]
    processor = processor_from_backbone(tiny_model(tiny))
    processor.image_processor = image_processor
    set_image_size(processor, image_size)
    image = opened((4000, 3000))
    draft_for(processor)(image)
    assert image.size == expected
    image.load()
    assert image.size == expected


def test_drafts_of_llava_follow_the_orientation_and_leave_other_formats_as_they_are(
    tiny_model: Callable[[str], Path],
):
    processor = processor_from_backbone(tiny_model("llava-next"))
    processor.image_processor = LlavaNextImageProcessor(**LLAVA_NEXT, image_grid_pinpoints=[[1008, 336]])  # upright
    # A landscape of 4000 x 1000 is read with 336 x 84 pixels, and with 252 x 1008 as the portrait that it shows.
    cases = [(4000, 1000), "JPEG", 1], [(4000, 1000), "JPEG", 6], [(4000, 1000), "PNG", 1], [(500, 125), "JPEG", 1]
    drafts = [opened(*case) for case in cases]
    for image in drafts:
        draft_for(processor)(image)
    assert [image.size for image in drafts] == [(1000, 250), (4000, 1000), (4000, 1000), (500, 125)]


def test_drafts_are_refused_where_the_size_that_is_read_is_unknown(tiny_model: Callable[[str], Path]):
    processor = processor_from_backbone(tiny_model("llava"))
    processor.image_processor.do_resize = False
    with pytest.raises(ValueError, match="reads images is not known here: leave draft_jpegs out"):
        draft_for(processor)


@pytest.mark.parametrize("name", ["qwen2-vl", "llava-next"])
def test_images_are_resized_to_squares_before_the_processor_reads_them(
    name: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model, processor = load_model(str(tiny_model(name)), {"square": 40}, dtype="float32")
    plain = load_model(str(tiny_model(name)), dtype="float32")[1]
    wide, square = PHOTO.resize((200, 30)), PHOTO.resize((200, 30)).resize((40, 40))
    expected = model.encode(square, plain)
    np.testing.assert_allclose(model.encode(wide, processor), expected, atol=1e-5)
    assert count_image_tokens(processor, [wide.size]) == count_image_tokens(plain, [square.size])
    assert count_patches(processor, [wide.size], 8) == count_patches(plain, [square.size], 8)
    assert size_as_read(processor, *wide.size) == size_as_read(plain, *square.size)
    saved = str(save_checkpoint(model, processor, tmp_path / "saved"))
    np.testing.assert_allclose(model.encode(wide, load_processor(saved)), expected, atol=1e-5)
    kept = load_processor(saved, {"square": None})
    np.testing.assert_allclose(model.encode(wide, kept), model.encode(wide, plain), atol=1e-5)
    with pytest.raises(ValueError, match="image_size has square=0: give a positive number of pixels"):
        set_image_size(processor, {"square": 0})
