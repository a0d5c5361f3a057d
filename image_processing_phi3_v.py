"""Image processor of Phi-3-Vision and Phi-3.5-Vision: a grid of square crops, and the whole image as one more."""

from math import ceil, isqrt
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_transforms import to_pil_image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, SizeDict

from .configuration_phi3_v import Phi3VConfig


class Phi3VImageProcessorKwargs(TypedDict, total=False):
    """Arguments of [`Phi3VImageProcessor`]."""

    num_crops: int
    num_img_tokens: int
    size: dict[str, int] | None
    image_mean: list[float] | tuple[float, ...] | None
    image_std: list[float] | tuple[float, ...] | None
    do_convert_rgb: bool | None
    return_tensors: str | None


class Phi3VImageProcessor(TorchvisionBackend):
    """Scales an image to the largest grid of at most `num_crops` crops, small images too, and splits it.

    Args:
        num_crops (`int`, *optional*, defaults to 4): Maximum number of crops, without that of the whole image. 16 for
            Phi-3-Vision and for documents.
        num_img_tokens (`int`, *optional*, defaults to 144): Number of tokens of a crop.
        size (`dict`, *optional*, defaults to 336 by 336): Height and width of a crop, in pixels.
        image_mean (`list[float]`, *optional*, defaults to CLIP's): Mean of each channel.
        image_std (`list[float]`, *optional*, defaults to CLIP's): Standard deviation of each channel.
        do_convert_rgb (`bool`, *optional*, defaults to `True`): Whether to convert images to RGB.
    """

    model_input_names = ["pixel_values", "image_sizes"]
    valid_kwargs = Phi3VImageProcessorKwargs
    num_crops = 4
    num_img_tokens = 144
    size = {"height": 336, "width": 336}
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_convert_rgb = True
    resample = Image.Resampling.BILINEAR

    def resized_size(self, width: int, height: int, num_crops: int | None = None) -> tuple[int, int]:
        """Return the width and height to which an image is resized; the longer side is a whole number of crops.

        Args:
            width (`int`): Width of the image in pixels.
            height (`int`): Height of the image in pixels.
            num_crops (`int`, *optional*, defaults to the attribute): Maximum number of crops.

        Raises:
            ValueError: The image is so thin that no pixel of its shorter side would be left.
        """
        limit = self.num_crops if num_crops is None else num_crops
        if height > width:
            height, width = self.resized_size(height, width, num_crops)
            return width, height
        ratio = width / height
        columns = 1
        while (columns + 1) * ceil((columns + 1) / ratio) <= limit:
            columns += 1
        longest = self.size["width"] * columns
        shortest = int(longest / ratio)  # in floating point, as the authors do it
        if shortest == 0:
            raise ValueError(f"its longer side may be at most {longest} times as long as its shorter side")
        return longest, shortest

    def grid(self, width: int, height: int, num_crops: int | None = None) -> tuple[int, int]:
        """Return the rows and columns of crops that an image is split into, see [`resized_size`] for the arguments."""
        width, height = self.resized_size(width, height, num_crops)
        return ceil(height / self.size["height"]), ceil(width / self.size["width"])

    def count_tokens(self, rows: int, columns: int) -> int:
        """Return the number of tokens of an image: crops, a separator per line of tokens, one before the whole image.

        Args:
            rows (`int`): Rows of crops.
            columns (`int`): Columns of crops.
        """
        return self.num_img_tokens * (rows * columns + 1) + isqrt(self.num_img_tokens) * (rows + 1) + 1

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> Image.Image:
        """Return an image as a PIL image, because only Pillow's resizing gives the authors' pixels."""
        image = image if isinstance(image, Image.Image) else to_pil_image(image)
        return image.convert("RGB") if do_convert_rgb else image

    def _preprocess(
        self,
        images: list[Image.Image],
        num_crops: int,
        size: SizeDict,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (image_mean, image_std))
        pixel_values, sizes = [], []
        for image in images:
            padded = self._resize_and_pad(image, num_crops)
            rgb = torch.from_numpy(np.array(padded)).permute(2, 0, 1).contiguous()
            pixels = rgb.float().div(255).sub(mean).div(std)
            crops = _crops(pixels, size["height"])
            # Missing crops are zero; the model leaves them out.
            pixel_values.append(nn.functional.pad(crops, (0,) * 7 + (num_crops + 1 - len(crops),)))
            sizes.append([padded.height, padded.width])
        return BatchFeature(
            {"pixel_values": torch.stack(pixel_values), "image_sizes": sizes}, tensor_type=return_tensors
        )

    def resize_image(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Resize an image as the authors do it, a portrait along its longer side first.

        Args:
            image (`PIL.Image`): The image.
            size (`tuple[int, int]`): The new width and height, see [`~Phi3VImageProcessor.resized_size`].
        """
        if image.height <= image.width:
            return image.resize(size, self.resample)
        return (
            image.transpose(Image.Transpose.TRANSPOSE)
            .resize(size[::-1], self.resample)
            .transpose(Image.Transpose.TRANSPOSE)
        )

    def _resize_and_pad(self, image: Image.Image, num_crops: int) -> Image.Image:
        """Resize an image and center it on white, at the size of whole crops."""
        rows, columns = self.grid(*image.size, num_crops)
        resized = self.resize_image(image, self.resized_size(*image.size, num_crops))
        padded = Image.new("RGB", (self.size["width"] * columns, self.size["height"] * rows), "white")
        padded.paste(resized, ((padded.width - resized.width) // 2, (padded.height - resized.height) // 2))
        return padded


def _crops(pixels: Tensor, edge: int) -> Tensor:
    """Return the whole image, shrunk to one crop, and its crops row by row: `(crops + 1, 3, edge, edge)`."""
    whole = nn.functional.interpolate(pixels[None], (edge, edge), mode="bicubic")
    channels, height, width = pixels.shape
    grid = pixels.view(channels, height // edge, edge, width // edge, edge)
    return torch.cat([whole, grid.permute(1, 3, 0, 2, 4).reshape(-1, channels, edge, edge)])


Phi3VImageProcessor.register_for_auto_class()
AutoImageProcessor.register(Phi3VConfig, image_processor_classes={"torchvision": Phi3VImageProcessor}, exist_ok=True)

__all__ = ["Phi3VImageProcessor"]
