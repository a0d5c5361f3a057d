"""Atomic writing of files, and sealed files whose names reveal damage.

A sealed file has the checksum of its content in its name: `stem.<checksum>.suffix`.
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
    """Yield a temporary path to write to, and rename it to the final path at the end.

    If the process fails or is killed before that, the previous file is left unchanged.

    Args:
        path (`Path`): Final path of the file; its folder must exist.
        sealed (`bool`, *optional*, defaults to `False`): Add the checksum of the content to the file name.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path.with_name(f"{path.stem}.{_checksum(part)}{path.suffix}") if sealed else path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {path} ({reason}): free disk space and try again") from None
    finally:
        part.unlink(missing_ok=True)


def intact_files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield the sealed files whose names match a pattern; log a warning for each damaged one and remove it.

    Args:
        folder (`Path`): Folder of the files.
        pattern (`str`): Glob pattern of the sealed names, such as `"*.*.npz"`.
    """
    for file in sorted(folder.glob(pattern)):
        try:
            checksum = _checksum(file)
        except FileNotFoundError:  # another process has just removed it as damaged
            continue
        if file.stem.endswith(f".{checksum}"):
            yield file
        else:
            logger.warning("%s is damaged (its checksum does not match): it is removed and made again", file)
            file.unlink(missing_ok=True)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
