"""Colors of image files: 16-bit grey values, ICC profiles and PNG gamma become 8-bit sRGB, as a viewer shows them."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms


SRGB_GAMMA = 1 / 2.2  # what the gAMA chunk of a PNG says of values that need no change
# The modes that LittleCMS converts, by the kind of profile that fits them.
PROFILE_MODES = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}


def to_8_bit(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image in 8 bits.

    Cameras and scanners store 10, 12 or 14 bits in 16: the image keeps the upper 8 of the bits that it uses.
    """
    values = np.asarray(image)
    bits = int(values.max()).bit_length()
    shift = max(0, bits + bits % 2 - 8)
    return Image.fromarray((values >> shift).astype(np.uint8))


def to_srgb(image: Image.Image) -> Image.Image:
    """Return an image in sRGB; one that has no color profile, or that of sRGB, is returned as it is.

    A profile that is damaged or does not fit the image is ignored, as viewers do.

    Args:
        image (`PIL.Image`): A decoded image with 8 bits per channel.
    """
    profile = image.info.get("icc_profile")
    if profile:
        return _apply_profile(image, profile)
    gamma = image.info.get("gamma")
    if gamma and "srgb" not in image.info and abs(gamma / SRGB_GAMMA - 1) > 0.05:
        return _apply_gamma(image, gamma)
    return image


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    opaque = image.convert("L") if image.mode == "LA" else image
    transform = _transform_to_srgb(profile, opaque.mode)
    if transform is None:
        return image
    converted = transform.apply(opaque)
    if alpha is not None:
        converted.putalpha(alpha)
    elif "transparency" in image.info:  # a color that means transparent: find it before it changes
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


@lru_cache(maxsize=64)  # the photos of one camera share a profile
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB, or `None` if it changes nothing, or the profile is damaged or does not fit."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if mode not in PROFILE_MODES.get(source.profile.xcolor_space, ()):
            return None
        target = "RGBA" if mode == "RGBA" else "RGB"
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, target, ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        if mode == "CMYK":
            return transform
        values = np.stack(np.meshgrid(*[np.arange(0, 256, 17, dtype=np.uint8)] * 3), axis=-1).reshape(16, -1, 3)
        sample = Image.fromarray(values).convert(mode)
        unchanged = np.asarray(sample.convert(target), np.int16)
        differences = np.abs(np.asarray(transform.apply(sample), np.int16) - unchanged)
        return transform if differences.max() > 2 else None
    except (ImageCms.PyCMSError, OSError):
        return None


def _apply_gamma(image: Image.Image, gamma: float) -> Image.Image:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        return image
    table = [round(255 * (value / 255) ** (SRGB_GAMMA / gamma)) for value in range(256)]
    unchanged = list(range(256))
    shown = image.point([entry for band in image.getbands() for entry in (unchanged if band == "A" else table)])
    del shown.info["gamma"]  # or it would be applied again
    return shown


__all__ = ["to_8_bit", "to_srgb"]
