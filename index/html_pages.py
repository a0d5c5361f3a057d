"""Pages that need no other file and no network: what comes from outside is escaped, images are inside."""

from base64 import b64encode
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def templates(package: str) -> Environment:
    """The templates that lie in a package's folder; a name that nobody gave a value is an error."""
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_url(webp: bytes) -> str:
    """A WebP image as an address that holds it."""
    return f"data:image/webp;base64,{b64encode(webp).decode()}"
