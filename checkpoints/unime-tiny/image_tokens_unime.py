"""Count the tokens and the vision patches of images and videos from their sizes, without preprocessing a pixel."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin
from transformers.image_processing_utils import select_best_resolution
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.video_utils import VideoMetadata


# Class names of the processors whose arithmetic the tests compare with the processor itself. `idefics3`, `smolvlm` and
# `phi3_v` split an image into a grid of tiles, `llava_next` and `llava_onevision` choose the best of given
# resolutions, and Qwen-VL rounds the image to whole patches.
QWEN_VL = frozenset({"Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"})
IDEFICS = frozenset({"Idefics3Processor", "SmolVLMProcessor"})
PHI3_V = "Phi3VProcessor"
LLAVA_TILES = frozenset({"LlavaNextProcessor", "LlavaOnevisionProcessor"})
SQUARE = "square"  # attribute of an image processor, see `set_square`
FRAMES_PER_SECOND = 2.0  # of a video given as frames, as in Qwen's qwen_vl_utils; Qwen2.5-VL and Qwen3-VL read times
MAX_IDEFICS_PIXELS = 4096  # longest edge of an image before it is split, whatever the processor's size


def square_of(processor: ProcessorMixin) -> int | None:
    """Return the number of pixels of the squares that images are resized to first; `None` keeps aspect ratios."""
    return vars(processor.image_processor).get(SQUARE)


def set_square(processor: ProcessorMixin, pixels: int | None) -> None:
    """Let a processor's images be resized to squares first. The setting is saved with the processor.

    Args:
        processor (`ProcessorMixin`): The processor; it is changed.
        pixels (`int`, *optional*): Height and width of the squares; `None` keeps aspect ratios.

    Raises:
        ValueError: `pixels` is not a positive number.
    """
    if pixels is not None and (not isinstance(pixels, int) or isinstance(pixels, bool) or pixels < 1):
        raise ValueError(f"image_size has square={pixels!r}: give a positive number of pixels, such as 1344, or null")
    if pixels is not None:
        setattr(processor.image_processor, SQUARE, pixels)
    else:
        vars(processor.image_processor).pop(SQUARE, None)


def sizes_before_processor(processor: ProcessorMixin, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the widths and heights with which images reach the processor."""
    square = square_of(processor)
    return list(sizes) if square is None else [(square, square)] * len(sizes)


def video_options(num_frames: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of a processor's call for videos that are given as frames.

    Args:
        num_frames (`list[int]`): Number of frames of each video, as they reach the processor.
    """
    metadata = [
        VideoMetadata(total_num_frames=count, fps=FRAMES_PER_SECOND, frames_indices=list(range(count)))
        for count in num_frames
    ]
    return {"do_sample_frames": False, "video_metadata": metadata}


def count_video_tokens(processor: ProcessorMixin, num_frames: int, size: tuple[int, int]) -> int:
    """Return the number of tokens of a video, the time stamps of Qwen3-VL included.

    Args:
        processor (`ProcessorMixin`): A processor of `VIDEO_PROCESSORS`.
        num_frames (`int`): Number of frames.
        size (`tuple[int, int]`): Width and height of the frames, in pixels.

    Raises:
        ValueError: The processor rejects the shape of the video.
    """
    family = type(processor).__name__
    if family in QWEN_VL:
        patches, grid = _qwen_video_patches(processor, num_frames, size)
        merged = processor.video_processor.merge_size**2
        if family != "Qwen3VLProcessor":
            return patches // merged
        (metadata,) = video_options([max(num_frames, 2)])["video_metadata"]
        inputs = {"video_grid_thw": [torch.tensor([grid, 1, patches // grid])], "video_metadata": [metadata]}
        text = processor.replace_video_token(inputs, 0)
        return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    shape = (num_frames, *size[::-1])
    return processor._get_num_multimodal_tokens(video_sizes=[shape])["num_video_tokens"][0]


def count_video_patches(processor: ProcessorMixin, num_frames: int, size: tuple[int, int], patch_size: int) -> int:
    """Return the number of patches that the vision tower reads for a video.

    Args:
        processor (`ProcessorMixin`): A processor of `VIDEO_PROCESSORS`.
        num_frames (`int`): Number of frames.
        size (`tuple[int, int]`): Width and height of the frames, in pixels.
        patch_size (`int`): Height and width of a patch, in pixels.

    Raises:
        ValueError: The processor rejects the shape of the video.
    """
    if type(processor).__name__ in QWEN_VL:
        return _qwen_video_patches(processor, num_frames, size)[0]
    return num_frames * (processor.video_processor.size["height"] // patch_size) ** 2


def _qwen_video_patches(processor: ProcessorMixin, num_frames: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the number of patches of a video, and of steps in time."""
    ((width, height),) = sizes_before_processor(processor, [size])
    video_processor = processor.video_processor
    count = max(num_frames, 2)  # a single frame is repeated
    patches = video_processor.get_num_of_video_patches(count, height, width, {})
    return patches, math.ceil(count / video_processor.temporal_patch_size)


def count_image_tokens(processor: ProcessorMixin, sizes: Sequence[tuple[int, int]]) -> int:
    """Return the number of tokens that the images of one item take together.

    The processors of LLaVA, LLaVA-NeXT, LLaVA-OneVision, Qwen-VL, Idefics3, SmolVLM and Phi-3-Vision are counted by
    arithmetic, any other by preprocessing blank images.

    Args:
        processor (`ProcessorMixin`): The processor.
        sizes (`list[tuple[int, int]]`): Width and height of each image, in pixels. All images of the item: some
            processors (LLaVA-OneVision) split an image into tiles only if it is alone.

    Raises:
        ValueError: The processor rejects the shape of an image.
    """
    family = type(processor).__name__
    sizes = sizes_before_processor(processor, sizes)
    if not sizes:
        return 0
    if family in IDEFICS:
        grids = [_idefics_grid(processor, *size) for size in sizes]
        rows, columns = [[grid[0] for grid in grids]], [[grid[1] for grid in grids]]
        texts = [
            processor.replace_image_token({"rows": rows, "cols": columns}, image_idx=index)
            for index in range(len(sizes))
        ]
        return len(processor.tokenizer("".join(texts), add_special_tokens=False)["input_ids"])
    if family == "LlavaOnevisionProcessor" and len(sizes) > 1:
        class_token = processor.vision_feature_select_strategy == "default"
        return len(sizes) * (processor.num_image_tokens + 1 - class_token)  # and a token for the end of the image
    if family == "LlavaProcessor":
        class_token = processor.vision_feature_select_strategy == "default"
        added = processor.num_additional_image_tokens - class_token
        return len(sizes) * (_llava_patches(processor, processor.patch_size) + added)
    if family in QWEN_VL | LLAVA_TILES | {PHI3_V}:
        heights_and_widths = [(height, width) for width, height in sizes]
        return sum(processor._get_num_multimodal_tokens(image_sizes=heights_and_widths)["num_image_tokens"])
    return len(_preprocess_blank_images(processor, sizes)["input_ids"][0])


def count_patches(processor: ProcessorMixin, sizes: Sequence[tuple[int, int]], patch_size: int) -> int:
    """Return the number of patches that the vision tower reads for the images of one item, those of all tiles.

    Args:
        processor (`ProcessorMixin`): The processor.
        sizes (`list[tuple[int, int]]`): Width and height of each image of the item, in pixels.
        patch_size (`int`): Height and width of a patch, in pixels: `vision_config.patch_size` of the backbone.

    Raises:
        ValueError: The processor rejects the shape of an image.
    """
    family = type(processor).__name__
    image_processor = processor.image_processor
    sizes = sizes_before_processor(processor, sizes)
    if not sizes:
        return 0
    if family in QWEN_VL:
        return sum(math.prod(_qwen_size(image_processor, *size)) for size in sizes) // patch_size**2
    if family in IDEFICS:
        grids = [_idefics_grid(processor, *size) for size in sizes]
        tiles = sum(rows * columns + 1 for rows, columns in grids)
        return tiles * (image_processor.max_image_size["longest_edge"] // patch_size) ** 2
    if family == "LlavaProcessor":
        return len(sizes) * _llava_patches(processor, patch_size)
    if family == PHI3_V:
        tiles = sum(math.prod(image_processor.grid(*size)) + 1 for size in sizes)
        return tiles * (image_processor.size["height"] // patch_size) ** 2
    if family in LLAVA_TILES:
        size = image_processor.size
        edge = size["shortest_edge"] or min(size["height"], size["width"])
        split = family == "LlavaNextProcessor" or len(sizes) == 1
        tiles = len(sizes)
        for width, height in sizes if split else ():
            best = select_best_resolution((height, width), image_processor.image_grid_pinpoints)
            tiles += (best[0] // edge) * (best[1] // edge)
        return tiles * (edge // patch_size) ** 2
    tensors = _preprocess_blank_images(processor, sizes)
    # Video-LLaVA has `pixel_values_images`.
    pixels = next(value for name, value in tensors.items() if name.startswith("pixel_values"))
    return len(pixels) if pixels.ndim == 2 else pixels.numel() // (3 * patch_size**2)  # 2: a row for each patch


def _llava_patches(processor: ProcessorMixin, patch_size: int) -> int:
    """Return the number of patches of the square that LLaVA-1.5 reads of any image: CLIP crops it, SigLIP does not."""
    square = processor.image_processor.crop_size or processor.image_processor.size
    return (square["height"] // patch_size) * (square["width"] // patch_size)


def patch_share(config: PreTrainedConfig) -> float:
    """Return the share of a token of the language model that a vision patch is worth, in work and in memory.

    A patch has a hidden state in each layer of the tower, a token one in each layer of the language model. The ratio
    of their sizes is 0.30 for LLaVA-OneVision-7B, 0.63 for SmolVLM2-2.2B and 0.95 for Qwen2-VL-2B; 0 if the
    configuration states no patch size.

    Args:
        config (`PreTrainedConfig`): Configuration of the backbone.
    """
    vision, text = _vision_settings(config), config.get_text_config()
    if vision.get("patch_size") is None:
        return 0.0
    # Qwen2-VL has an `embed_dim`, and calls the width of the tower's output `hidden_size`.
    layers = vision.get("depth") or vision["num_hidden_layers"]
    hidden_size = vision.get("embed_dim") or vision["hidden_size"]
    return layers * hidden_size / (text.num_hidden_layers * text.hidden_size)


def vision_token_equivalents(
    processor: ProcessorMixin,
    sizes: Sequence[tuple[int, int]],
    config: PreTrainedConfig,
    videos: Sequence[tuple[int, tuple[int, int]]] = (),
) -> float:
    """Return how many tokens of the language model the patches of one item's images are worth, see [`patch_share`].

    Args:
        processor (`ProcessorMixin`): The processor.
        sizes (`list[tuple[int, int]]`): Width and height of each image of the item, in pixels.
        config (`PreTrainedConfig`): Configuration of the backbone.
        videos (`list[tuple[int, tuple[int, int]]]`, *optional*): Number, and width and height of the frames of each
            video of the item.

    Raises:
        ValueError: The processor rejects the shape of an image.
    """
    patch_size = _vision_settings(config).get("patch_size")
    if patch_size is None:
        return 0.0
    edge = patch_size if isinstance(patch_size, int) else patch_size[0]  # InternVL states both edges
    patches = count_patches(processor, sizes, edge)
    patches += sum(count_video_patches(processor, num_frames, size, edge) for num_frames, size in videos)
    return patch_share(config) * patches


def _vision_settings(config: PreTrainedConfig) -> Mapping[str, Any]:
    """Return the configuration of the vision tower by name; `to_dict` would copy everything, for each item."""
    vision = vars(config).get("vision_config") or {}
    return vision if isinstance(vision, dict) else vars(vision)


def _qwen_size(image_processor, width: int, height: int) -> tuple[int, int]:
    """Return the height and width to which Qwen-VL resizes an image."""
    size = image_processor.size
    factor = image_processor.patch_size * image_processor.merge_size
    return smart_resize(height, width, factor, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"])


def _idefics_grid(processor: ProcessorMixin, width: int, height: int) -> tuple[int, int]:
    """Return the rows and columns of tiles that Idefics3 and SmolVLM split an image into; (0, 0) if it stays whole.

    As their image processors resize it. Their own count (`get_number_of_image_patches`) rounds differently where the
    longest edge is not a whole number of tiles.
    """
    image_processor = processor.image_processor
    if not image_processor.do_image_splitting:
        return 0, 0
    tile = image_processor.max_image_size["longest_edge"]
    longest = image_processor.size["longest_edge"]
    wide = width >= height
    ratio = width / height

    def shorter(longer: int) -> int:
        return int(longer / ratio) if wide else int(longer * ratio)

    short = shorter(longest)
    short = max(short + short % 2, 1)
    if longest > MAX_IDEFICS_PIXELS:
        ratio = longest / short if wide else short / longest
        longest, short = MAX_IDEFICS_PIXELS, max(shorter(MAX_IDEFICS_PIXELS), 1)
    ratio = longest / short if wide else short / longest
    long_tiles = math.ceil(longest / tile)
    short_tiles = math.ceil(shorter(long_tiles * tile) / tile)
    if long_tiles == 1 and short_tiles <= 1:
        return 0, 0
    return (short_tiles, long_tiles) if wide else (long_tiles, short_tiles)


def _preprocess_blank_images(processor: ProcessorMixin, sizes: Sequence[tuple[int, int]]) -> BatchFeature:
    images = [Image.new("RGB", size) for size in sizes]
    text = processor.image_token * len(sizes)
    return processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt")


__all__ = [
    "count_image_tokens",
    "count_patches",
    "count_video_patches",
    "count_video_tokens",
    "patch_share",
    "square_of",
    "video_options",
    "vision_token_equivalents",
]
