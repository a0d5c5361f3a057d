"""Hand images and video frames to the image processor of a backbone in the form in which it reads them fastest.

The pixels are those that the processor would make of the images itself.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin
from transformers.image_processing_backends import TorchvisionBackend

from .image_tokens_unime import QWEN_VL, sizes_before_processor


MIN_PLANES_PIXELS = 2**19  # for smaller images it saves no time
ROWS_PER_STRIP = 64


def images_before_processor(processor: ProcessorMixin, images: Sequence[Image.Image]) -> list[Image.Image | Tensor]:
    """Return images as they reach the processor: resized to squares if it is set so, as VLM2Vec does with Pillow.

    Photographs become tensors here, see [`to_planes`], if the processor would make the same tensors of them.
    """
    takes_tensors = getattr(type(processor.image_processor), "process_image", None) is TorchvisionBackend.process_image
    return [
        to_planes(image)
        if takes_tensors and image.mode == "RGB" and image.width * image.height >= MIN_PLANES_PIXELS
        else image
        for image in _squares(processor, images)
    ]


def to_planes(image: Image.Image) -> Tensor:
    """Return the red, green and blue planes of an RGB image, `(3, height, width)`, uint8.

    A strip at a time stays in the CPU's cache. Image processors make the whole array in between, which takes three
    times as long and another 36 MB for 12 megapixels.
    """
    planes = np.empty((3, image.height, image.width), np.uint8)
    for top in range(0, image.height, ROWS_PER_STRIP):
        bottom = min(top + ROWS_PER_STRIP, image.height)
        strip = image.crop((0, top, image.width, bottom))
        for plane, band in zip(planes, strip.split(), strict=True):
            plane[top:bottom] = np.frombuffer(band.tobytes(), np.uint8).reshape(bottom - top, image.width)
    return torch.from_numpy(planes)


def _squares(processor: ProcessorMixin, images: Sequence[Image.Image]) -> list[Image.Image]:
    sizes = sizes_before_processor(processor, [image.size for image in images])
    return [image if image.size == size else image.resize(size) for image, size in zip(images, sizes, strict=True)]


def frames_before_processor(processor: ProcessorMixin, frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Return the frames of a video as they reach the processor, resized as those of [`images_before_processor`].

    Qwen's processors merge two frames into one and repeat the last of an odd number; that of Qwen3-VL refuses a single
    frame, so it is repeated here.
    """
    frames = _squares(processor, frames)
    return frames * 2 if len(frames) == 1 and type(processor).__name__ in QWEN_VL else frames


__all__ = ["frames_before_processor", "images_before_processor", "to_planes"]
