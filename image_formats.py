"""Image formats that the package opens.

Pillow identifies a format by content and supports more, some by starting another program (EPS): untrusted files must
not reach those.
"""

IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
REQUEST_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # those that OpenAI's API and the server accept
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
