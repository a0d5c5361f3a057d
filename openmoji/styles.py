"""Drawings of the same emoji by other artists, so that a model can learn what does not depend on the artist.

    make styles                                          # fetches the four packages below into the cache folder
    openmoji_rows("train", 1000, styles=["openmoji", "twemoji"])

Each style is one JSON file of SVGs from an Iconify package in the npm registry, read from the archive that `npm pack`
writes. Nothing is downloaded at run time.

| style      | package                          | license    | emoji of the catalogue       |
| ---------- | -------------------------------- | ---------- | ---------------------------- |
| `twemoji`  | `@iconify-json/twemoji`          | CC BY 4.0  | 3,773                        |
| `noto`     | `@iconify-json/noto`             | Apache-2.0 | 3,512: no flags of countries |
| `fluent`   | `@iconify-json/fluent-emoji-flat`| MIT        | 3,139: no flags of countries |
| `emojione` | `@iconify-json/emojione`         | CC BY 4.0  | those of 2016; held out      |

EmojiOne is the held-out artist: the benchmark uses its drawings, training refuses them.
"""

import functools
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tarfile import open as open_tar

import numpy as np
import resvg_py
from PIL import Image

from .catalogue import DRAWING_SIZE, cache_folder, cached_array, catalogue, drawings, sources_version


OPENMOJI = "openmoji"
HELD_OUT_STYLE = "emojione"


@dataclass(frozen=True)
class Package:
    """An npm package of drawings: its name, version, the SHA-256 of its archive, and the license of the drawings."""

    name: str
    version: str
    sha256: str
    license: str

    @property
    def archive(self) -> Path:
        """Return the path of the archive in the cache folder, named as `npm pack` names it."""
        stem = self.name.removeprefix("@").replace("/", "-")
        return cache_folder() / f"{stem}-{self.version}.tgz"


PACKAGES = {
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "Twemoji (github.com/jdecked/twemoji), CC BY 4.0",
    ),
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Noto Emoji (github.com/googlefonts/noto-emoji), Apache-2.0",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "Fluent Emoji (github.com/microsoft/fluentui-emoji), MIT",
    ),
    HELD_OUT_STYLE: Package(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "EmojiOne 2 (github.com/EmojiTwo/emojitwo), CC BY 4.0",
    ),
}
STYLES = (OPENMOJI, *PACKAGES)


def check_training_styles(styles: Sequence[str]) -> None:
    """Raise a `ValueError` unless the styles are distinct, exist, and may be used in training."""
    for style in styles:
        if style not in STYLES:
            raise ValueError(f"there is no style {style!r}: choose from {', '.join(STYLES)}")
        if style == HELD_OUT_STYLE:
            raise ValueError(f"the style {style!r} is held out for the benchmark: remove it from the training data")
    if not styles or len(set(styles)) < len(styles):
        raise ValueError(f"styles must name at least one style, and each once; got {', '.join(styles) or 'none'}")


def styles_version(styles: Sequence[str]) -> str:
    """Return the versions of the packages behind some styles, for cache keys."""
    return "-".join(f"{style}{PACKAGES[style].version}" for style in styles if style != OPENMOJI)


@functools.cache
def style_drawings(style: str) -> np.ndarray:
    """Return the drawings of a style as one read-only memory map, `(number of emoji, 96, 96, 4)` uint8 RGBA.

    They are in catalogue order; an emoji that the style lacks is fully transparent (see [`has_drawing`]). They are
    rendered once and then shared by all processes of the machine.

    Raises:
        FileNotFoundError: The package of the style has not been fetched.
        ValueError: The archive is not the published one.
    """
    if style == OPENMOJI:
        return drawings()
    package = PACKAGES[style]

    def rendered() -> np.ndarray:
        icons = _icons(package)
        images = np.zeros((len(catalogue()), DRAWING_SIZE, DRAWING_SIZE, 4), dtype=np.uint8)
        for index, slug in _slugs(style, icons).items():
            images[index] = _draw(icons, slug)
        return images

    return cached_array(cache_folder(), f"{style}-{DRAWING_SIZE}-{package.version}-{sources_version()}", rendered)


@functools.cache
def has_drawing(style: str) -> np.ndarray:
    """Return whether a style has a drawing of each emoji of the catalogue, `(number of emoji,)` bool."""
    return np.asarray(style_drawings(style)[..., 3].reshape(len(catalogue()), -1).any(axis=1))


def is_available(style: str) -> bool:
    """Return whether the drawings of a style are on this machine."""
    try:
        style_drawings(style)
    except FileNotFoundError:
        return False
    return True


def _icons(package: Package) -> dict:
    """Read the icons of a package: the JSON of its SVGs, with its table of code points under `chars`."""
    if not package.archive.exists():
        raise FileNotFoundError(
            f"{package.archive} is missing: fetch the drawings with "
            f"npm pack --pack-destination {package.archive.parent} {package.name}@{package.version}"
        )
    content = package.archive.read_bytes()
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise ValueError(f"{package.archive} is not {package.name} {package.version}: delete it and fetch it again")
    with open_tar(fileobj=BytesIO(content)) as archive:

        def member(name: str) -> dict:
            opened = archive.extractfile(f"package/{name}.json")
            return json.load(opened) if opened else {}

        return member("icons") | {"chars": member("chars")}


def _slugs(style: str, icons: dict) -> dict[int, str]:
    """Return the icon of each emoji that the style has: index in the catalogue -> slug."""
    if style == HELD_OUT_STYLE:
        return _slugs_by_name(icons)
    by_code = {_bare_code(code): slug for code, slug in icons["chars"].items()}
    codes = {entry.index: _bare_code(entry.code) for entry in catalogue()}
    return {index: by_code[code] for index, code in codes.items() if code in by_code}


def _bare_code(code: str) -> str:
    """Return a code point sequence without variation selectors, which the sources add differently."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def _slugs_by_name(icons: dict) -> dict[int, str]:
    """Map emoji to slugs by their English names, for a package without code points; ambiguous names map to nothing.

    A name takes precedence over an alias: the cat is "cat", although "cat face" has that alias.
    """
    available = {*icons["icons"], *icons["aliases"]}
    of_name = Counter(_slug(entry.name) for entry in catalogue())
    slugs = {entry.index: _slug(entry.name) for entry in catalogue() if of_name[_slug(entry.name)] == 1}
    slugs = {index: slug for index, slug in slugs.items() if slug in available}
    aliases = {
        entry.index: next((slug for slug in map(_slug, entry.aliases) if slug in available and not of_name[slug]), "")
        for entry in catalogue()
        if entry.index not in slugs
    }
    claims = Counter(aliases.values())
    return slugs | {index: slug for index, slug in aliases.items() if slug and claims[slug] == 1}


def _slug(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name.lower().replace("'", "")).strip("-")


def _draw(icons: dict, slug: str) -> np.ndarray:
    """Render an icon in its own view box, centred in the square."""
    icon, flipped = icons["icons"].get(slug), False
    while icon is None:  # an alias, of an icon or of another alias
        alias = icons["aliases"][slug]
        slug, flipped = alias["parent"], flipped != alias.get("hFlip", False)
        icon = icons["icons"].get(slug)
    left, top = (icon.get(side, icons.get(side, 0)) for side in ("left", "top"))
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    drawn_width, drawn_height = (round(DRAWING_SIZE * side / max(width, height)) for side in (width, height))
    png = resvg_py.svg_to_bytes(svg_string=svg, width=drawn_width, height=drawn_height, skip_system_fonts=True)
    image = Image.open(BytesIO(png))
    canvas = Image.new("RGBA", (DRAWING_SIZE, DRAWING_SIZE))
    canvas.paste(image.convert("RGBA"), ((DRAWING_SIZE - image.width) // 2, (DRAWING_SIZE - image.height) // 2))
    drawn = np.asarray(canvas)
    return drawn[:, ::-1] if flipped else drawn
