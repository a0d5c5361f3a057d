"""Modes of written files: a server of another user must be able to read them."""

import os
from pathlib import Path


def private_files(folder: Path) -> list[str]:
    """Return the files and folders below a folder that other users may not read although the umask allows it."""
    umask = os.umask(0o077)
    os.umask(umask)
    readable = 0o444 & ~umask
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.lstat().st_mode & readable != readable
    ]
