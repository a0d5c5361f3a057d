"""Files that are there whole or not at all, and sealed ones, which show whether they are as they were written.

A sealed file carries the checksum of its content in its name: `stem.<checksum>.suffix`.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


logger = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: Path, sealed: bool = False) -> Iterator[Path]:
    """Give another name to write a file under; at the end it is renamed to `path`, or to the sealed name of `path`.

    A killed process leaves the file that was there before, and so does one that fails.

    Raises:
        OSError: The file cannot be written, because the disk is full, say: one sentence.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path.with_name(f"{path.stem}.{_checksum(part)}{path.suffix}") if sealed else path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}): make room on its disk and try again") from None
    finally:
        part.unlink(missing_ok=True)


def intact_files(folder: Path, pattern: str) -> Iterator[Path]:
    """Find the sealed files whose names match a pattern; a damaged one is named in a warning and removed."""
    for file in sorted(folder.glob(pattern)):
        try:
            checksum = _checksum(file)
        except FileNotFoundError:  # another process has just found it damaged
            continue
        if file.stem.endswith(f".{checksum}"):
            yield file
        else:
            logger.warning("%s is damaged, its checksum is another one: it is removed and made again", file)
            file.unlink(missing_ok=True)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
