"""Self-contained HTML pages: everything inserted into a template is escaped, and images are embedded."""

from base64 import b64encode
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def templates(package: str) -> Environment:
    """Return the environment of the templates in a package's folder. Undefined names raise an error."""
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_url(encoded: bytes, image_format: str = "webp") -> str:
    """Return the data URL of an encoded image."""
    return f"data:image/{image_format};base64,{b64encode(encoded).decode()}"
