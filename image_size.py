"""The size at which a model reads images: one setting for all families, or the image processor's own arguments.

The setting changes the processor, which is saved with a checkpoint. Everything that loads the checkpoint then reads
images at this size: [`load_model`], `AutoModel`, sentence-transformers and serving engines.
"""

import json
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import torch
from PIL import ExifTags, Image
from transformers import ProcessorMixin
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.smolvlm.image_processing_smolvlm import get_resize_output_image_size as smolvlm_output_size

from .image_tokens_unime import SQUARE, set_square, sizes_before_processor


# Class names of image processors, by how they limit the size of an image.
PIXEL_LIMIT = frozenset({"Qwen2VLImageProcessor"})
PIXEL_LIMIT_OF_FRAMES = frozenset({"Qwen2VLVideoProcessor"})  # that of Qwen3-VL limits the sum over all frames
TILES_OF_LONGEST_EDGE = frozenset({"Idefics3ImageProcessor", "SmolVLMImageProcessor"})
CROPS = frozenset({"Phi3VImageProcessor"})
TILES_OF_GRIDS = frozenset({"LlavaNextImageProcessor", "LlavaOnevisionImageProcessor"})
ONE_SIZE = frozenset({"CLIPImageProcessor", "SiglipImageProcessor"})
DRAFT_SCALE = 2  # size of a draft over the size that is read; at 2, cosines with a full decoding are 0.999 and more

ImageSize = int | Mapping[str, Any] | str  # a `str` is JSON, from the command line


def set_image_size(processor: ProcessorMixin, image_size: ImageSize | None) -> None:
    """Set the size at which a processor reads images; aspect ratios are kept, except with `square`.

    Args:
        processor (`ProcessorMixin`): The processor of a model; it is changed.
        image_size (`int`, `dict` or `str`, *optional*): With a number `n`, images are read with at most `n * n` pixels
            (Qwen2-VL, Qwen2.5-VL, Qwen3-VL), within a square of `n` by `n` pixels, rounded up to whole tiles of the
            vision tower (LLaVA-1.6, LLaVA-OneVision, Idefics3, SmolVLM), or with as many crops as such a square has
            (Phi-3.5-Vision). A dict has arguments of the image processor, such as `{"min_pixels": 3136, "max_pixels":
            1003520}`, and may have `square`: images are first resized to a square of that many pixels, whatever their
            aspect ratio, as some embedders were trained; `None` keeps the aspect ratio. Either may be a `str` of JSON.
            `None` keeps the size. Qwen2-VL and Qwen2.5-VL read each frame of a video within the same limits;
            LLaVA-OneVision and Qwen3-VL keep the size of their video processors.

    Raises:
        ValueError: The processor has no such argument, or no size that a number stands for.
    """
    arguments = parse_image_size(image_size)
    if arguments is None:
        return
    image_processor = processor.image_processor
    if isinstance(arguments, int):
        arguments = _arguments_of_number(image_processor, arguments)
    valid = _valid_arguments(image_processor)
    squared = {name: arguments.pop(name) for name in (SQUARE,) if name in arguments}
    unknown = ", ".join(name for name in arguments if name not in valid)
    if unknown:
        raise ValueError(
            f"image_size has {unknown}, which {type(image_processor).__name__} does not take: its arguments are "
            f"{', '.join(valid)}"
        )
    processor.image_processor = type(image_processor).from_dict(image_processor.to_dict(), **arguments)
    for pixels in squared.values():
        set_square(processor, pixels)
    if type(vars(processor).get("video_processor")).__name__ in PIXEL_LIMIT_OF_FRAMES:
        size = dict(processor.image_processor.size)
        settings = processor.video_processor.to_dict()
        processor.video_processor = type(processor.video_processor).from_dict(settings, size=size)


def parse_image_size(image_size: ImageSize | None) -> int | dict[str, Any] | None:
    """Return an image size as a number or a dict.

    Raises:
        ValueError: It is neither a positive number nor a dict, nor JSON of one.
    """
    value: Any = image_size
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            pass  # reported below
    if value is None or isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, Mapping) and value:
        return dict(value)
    raise ValueError(
        "image_size must be a positive number of pixels, such as 336, or arguments of the image processor, such as "
        f'{{"max_pixels": 1003520}}; got {image_size!r}'
    )


def size_as_read(processor: ProcessorMixin, width: int, height: int) -> tuple[int, int]:
    """Return the width and height to which a processor resizes an image: of several sizes, the largest.

    Args:
        processor (`ProcessorMixin`): The processor.
        width (`int`): Width of the image in pixels.
        height (`int`): Height of the image in pixels.

    Raises:
        ValueError: The processor rejects this shape.
    """
    image_processor = processor.image_processor
    name, size = _class_name(image_processor), image_processor.size
    ((width, height),) = sizes_before_processor(processor, [(width, height)])
    image = torch.empty((3, height, width), device="meta")
    if name in PIXEL_LIMIT:
        factor = image_processor.patch_size * image_processor.merge_size
        new_size = smart_resize(height, width, factor, size["shortest_edge"], size["longest_edge"])
    elif name in CROPS:
        return image_processor.resized_size(width, height)
    elif name in TILES_OF_LONGEST_EDGE:
        new_size = smolvlm_output_size(image, size["longest_edge"])
    elif name in TILES_OF_GRIDS:
        grid = select_best_resolution((height, width), image_processor.image_grid_pinpoints)
        new_size = get_patch_output_size(image, grid, ChannelDimension.FIRST)
    elif size["height"] and size["width"]:
        new_size = size["height"], size["width"]
    elif size["shortest_edge"]:
        first = ChannelDimension.FIRST
        new_size = get_resize_output_image_size(image, size["shortest_edge"], False, input_data_format=first)
    else:
        new_size = height, width
    return new_size[1], new_size[0]


def draft_for(processor: ProcessorMixin) -> Callable[[Image.Image], None]:
    """Return a function that lets an opened JPEG be decoded at 1/2, 1/4 or 1/8 of its width and height.

    It takes the smallest fraction at which the image has at least twice the size at which the processor reads it, and
    changes no other format, no smaller JPEG and no image that is decoded already. See `Image.draft` of Pillow.

    Args:
        processor (`ProcessorMixin`): The processor of LLaVA-1.5, LLaVA-1.6, LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL,
            Qwen3-VL, Idefics3 or SmolVLM.

    Raises:
        ValueError: It is another processor, or does not resize images.
    """
    image_processor = processor.image_processor
    name = _class_name(image_processor)
    if name not in PIXEL_LIMIT | TILES_OF_LONGEST_EDGE | TILES_OF_GRIDS | ONE_SIZE or not image_processor.do_resize:
        raise ValueError(f"the size at which {name} reads images is not known here: leave draft_jpegs out")

    def draft(image: Image.Image) -> None:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # the width of the file is shown as the height
        try:
            width, height = size_as_read(processor, *(image.size[::-1] if turned else image.size))
        except ValueError:  # which the processor raises too, with the image at hand
            return
        size = (DRAFT_SCALE * width, DRAFT_SCALE * height)
        image.draft("RGB", size[::-1] if turned else size)

    return draft


def _class_name(image_processor: Any) -> str:
    return type(image_processor).__name__.removesuffix("Pil")


def _arguments_of_number(image_processor: Any, pixels: int) -> dict[str, Any]:
    """Return the arguments with which an image processor reads images at up to `pixels` by `pixels`."""
    name = _class_name(image_processor)
    if name in PIXEL_LIMIT:
        size = image_processor.size
        return {"size": {"shortest_edge": min(size["shortest_edge"], pixels**2), "longest_edge": pixels**2}}
    if name in CROPS:
        return {"num_crops": ceil(pixels / image_processor.size["height"]) ** 2}
    if name in TILES_OF_LONGEST_EDGE:
        tile = image_processor.max_image_size["longest_edge"]
        return {"size": {"longest_edge": tile * ceil(pixels / tile)}}
    if name in TILES_OF_GRIDS:
        grids = image_processor.image_grid_pinpoints
        largest = max(map(max, grids))
        if pixels > largest:
            raise ValueError(
                f"image_size is {pixels}, but the image_grid_pinpoints of this {name} end at {largest} pixels: give "
                f"at most {largest}, or an image_size with larger image_grid_pinpoints"
            )
        tile = (image_processor.crop_size or image_processor.size)["height"]
        limit = tile * ceil(pixels / tile)
        return {"image_grid_pinpoints": [grid for grid in grids if max(grid) <= limit] or [[tile, tile]]}
    raise ValueError(
        f"image_size is {pixels}, but {name} has no size that a number could limit: leave image_size out, or give "
        f"arguments of the image processor as a dict: {', '.join(_valid_arguments(image_processor))}"
    )


def _valid_arguments(image_processor: Any) -> list[str]:
    return sorted(image_processor.valid_kwargs.__annotations__)
