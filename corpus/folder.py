"""A folder of images and texts as a corpus, with metadata files and captions beside the images."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from ..data.image_files import resolve_path
from ..image_formats import HEIF_SUFFIXES, IMAGE_SUFFIXES, UNREAD_SUFFIXES, is_image
from .entry import Entry
from .folder_metadata import METADATA_FILES, read_metadata


# Folders of operating systems and network storage, in lower case: deleted files, thumbnails and snapshots.
SYSTEM_FOLDERS = frozenset(
    {
        "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "__macosx", "lost+found",
        "recycler", "system volume information",
    }
)  # fmt: skip
HIDDEN, SYSTEM, EXCLUDED = "hidden", "system folders", "excluded"
LINKS, REPEATED, OTHER = "links to folders", "folders that a link leads to again", "neither images nor texts"
SHOWN_NAMES = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderSettings:
    """Which files of a folder are entries.

    Args:
        exclude (`Sequence[str]`): Patterns such as `"*.gif"`, `"drafts"` or `"2019/*"`. Files and folders are left out
            if their name or their relative path matches one of them; `*` matches `/`, too.
        captions (`str`, *optional*): Suffix of the files with the texts of images, such as `"txt"`: `a.txt` has the
            text of `a.png`. By default a .txt file is an entry of its own.
        follow_links (`bool`, defaults to `False`): Whether to read what links lead to, on whatever disk.
    """

    exclude: Sequence[str] = ()
    captions: str | None = None
    follow_links: bool = False

    def excludes(self, path: str) -> bool:
        """Return whether a pattern matches a relative path, or one of the folders that it is in."""
        if not self.exclude:
            return False
        parts = path.split("/")
        paths = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        return any(fnmatchcase(name, pattern) for name in {*parts, *paths} for pattern in self.exclude)


@dataclass
class Listing:
    """The files of a folder and its subfolders, as relative paths.

    Args:
        images (`list[str]`): Images.
        unread (`list[str]`): Images of formats that are not opened, which become rejected entries.
        texts (`list[str]`): .txt files.
        tables (`list[str]`): Parquet files.
        metadata_files (`list[str]`): Files of metadata, see [`read_metadata`].
        captions (`dict[str, str]`): Caption files by their path without the suffix.
        skipped (`dict[str, list[str]]`): Other files and folders, by the reason why they are no entries.
    """

    images: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    metadata_files: list[str] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, path: str, reason: str) -> None:
        """Add a file or folder that is no entry."""
        self.skipped.setdefault(reason, []).append(path)


def list_folder(folder: Path, settings: FolderSettings) -> Listing:
    """List the files of a folder recursively.

    Raises:
        OSError: A subfolder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise OSError(f"{error.filename} cannot be read ({error.strerror}): fix that, or exclude the folder") from None

    listing, visited = Listing(), set()
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=settings.follow_links):
        start = Path(place).relative_to(folder).as_posix() + "/"
        start = "" if start == "./" else start
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:
            listing.skip(start[:-1], REPEATED)
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        entered = []
        for name in sorted(folders):
            reason = _reason_to_skip(name, start + name, settings)
            if reason is None and name.lower() in SYSTEM_FOLDERS:
                reason = SYSTEM
            if reason is None and not settings.follow_links and os.path.islink(os.path.join(place, name)):
                reason = LINKS
            if reason is None:
                entered.append(name)
            else:
                listing.skip(start + name, reason)
        folders[:] = entered
        for name in sorted(files):
            _list_file(listing, folder, start + name, settings)
    return listing


def _list_file(listing: Listing, folder: Path, path: str, settings: FolderSettings) -> None:
    name, (stem, suffix) = os.path.basename(path), os.path.splitext(path)
    suffix = suffix.lower()
    reason = _reason_to_skip(name, path, settings)
    if reason is not None:
        listing.skip(path, reason)
    elif name in METADATA_FILES:
        listing.metadata_files.append(path)
    elif settings.captions is not None and suffix == "." + settings.captions.lower().lstrip("."):
        listing.captions[stem] = path
    elif suffix in IMAGE_SUFFIXES | HEIF_SUFFIXES or not suffix and is_image(folder / path):
        listing.images.append(path)
    elif suffix in UNREAD_SUFFIXES:
        listing.unread.append(path)
    elif suffix == ".txt":
        listing.texts.append(path)
    elif suffix == ".parquet":
        listing.tables.append(path)
    else:
        listing.skip(path, OTHER)


def _reason_to_skip(name: str, path: str, settings: FolderSettings) -> str | None:
    if name.startswith("."):
        return HIDDEN
    return EXCLUDED if settings.excludes(path) else None


class FolderEntries:
    """The entries of a listed folder: their ids, which are relative paths, and a call that makes one of them.

    Args:
        folder (`Path`): The folder.
        listing ([`Listing`]): Its files.
        root (`Path`): Resolved folder that no file may lie outside of, unless links are followed.
        text (`str`): Key of the text of an image in the metadata.
        settings ([`FolderSettings`]): The settings of the listing.

    Raises:
        ValueError: A file of metadata is malformed, or two rows name the same file.
    """

    def __init__(self, folder: Path, listing: Listing, root: Path, text: str, settings: FolderSettings):
        self.folder, self.root, self.text, self.follow_links = folder.resolve(), root, text, settings.follow_links
        metadata = read_metadata(folder, listing.metadata_files, text)
        self.metadata = {name: row for name, row in metadata.items() if not settings.excludes(name)}
        stems = {os.path.splitext(name)[0] for name in listing.images}
        self.captions = {stem: path for stem, path in listing.captions.items() if stem in stems}
        alone = [path for stem, path in listing.captions.items() if stem not in stems]
        texts = [*listing.texts, *(path for path in alone if path.lower().endswith(".txt"))]
        for path in sorted({*alone} - {*texts}):
            listing.skip(path, "captions without an image")
        self.ids = sorted({*listing.images, *listing.unread, *texts, *self.metadata})
        self.columns = list(dict.fromkeys(name for row in self.metadata.values() for name in row if name != text))
        same_names = [path for path in listing.texts if os.path.splitext(path)[0] in stems]
        if same_names:
            logger.warning(
                "%d .txt files of %s have the name of an image, such as %s: they are entries of their own; set "
                "captions to txt if they are the texts of the images",
                len(same_names), folder, same_names[0],
            )  # fmt: skip

    def __call__(self, name: str, index: int) -> Entry:
        """Return the entry of a relative path."""
        values = dict(self.metadata.get(name, {}))
        text = values.pop(self.text, None)
        path, problem = self._path(name)
        if problem is None and text is not None and not isinstance(text, str):
            text, problem = None, f"its text has type {type(text).__name__}: make it a string"
        if name.lower().endswith(".txt"):
            if problem is None:
                text, problem = _read_text(path)
            return Entry(name, text, None, values, problem)
        caption = self.captions.get(os.path.splitext(name)[0])
        if problem is None and text is None and caption is not None:
            caption_path, problem = self._path(caption)
            if problem is None:
                text, problem = _read_text(caption_path)
        return Entry(name, text, path, values, problem)

    def _path(self, name: str) -> tuple[str, str | None]:
        """Return the full path of a file, and why it must not be opened (`None` if it may)."""
        if not self.follow_links:
            return resolve_path(str(self.folder / name), self.root)
        # Links may lead anywhere, which is what the user asked for; a name may not.
        normalized = os.path.normpath(name)
        if os.path.isabs(normalized) or normalized.split(os.sep)[0] == os.pardir:
            return name, f"its file {name} is outside of {self.folder}: move it there"
        return str(self.folder / normalized), None


def _read_text(path: str) -> tuple[str | None, str | None]:
    if not Path(path).is_file():  # reading a pipe would block forever
        return None, f"its file {path} does not exist or is not a regular file: fix or remove it"
    try:
        # Invalid UTF-8 becomes lone surrogates, which an entry refuses.
        return Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape"), None
    except OSError as error:
        return None, f"its file {path} cannot be read ({error.strerror}): fix that"


def warn_of_skipped(folder: Path, skipped: Mapping[str, Sequence[str]]) -> None:
    """Log one warning with the number of files and folders that are no entries, and some names, by reason."""
    if skipped:
        parts = [
            f"{len(paths)} {reason} ({', '.join(paths[:SHOWN_NAMES])}{', ...' if len(paths) > SHOWN_NAMES else ''})"
            for reason, paths in skipped.items()
        ]
        total = sum(map(len, skipped.values()))
        logger.warning("%d files and folders of %s are skipped: %s", total, folder, "; ".join(parts))
