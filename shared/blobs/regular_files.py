"""Opens files that others might have put something else in the place of. Blocking."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["checked", "open_folder", "open_regular"]

# A pipe would otherwise be waited for until somebody writes to it.
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_folder(path: Path) -> int:
    """Return a descriptor of a folder, by which what is in it is named; follows no link.

    Raises:
        FileNotFoundError: There is nothing.
        OSError: It is a link, or no folder.

    """
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


def open_regular(path: Path | str, *, folder: int | None = None) -> int:
    """Return a descriptor to read a file with; follows no link, and waits for nobody.

    Args:
        path: Where it is.
        folder: Descriptor of the folder that it is in, if ``path`` is only its name.

    Raises:
        FileNotFoundError: There is nothing.
        OSError: It is a link, or something else that is no file.

    """
    fd = os.open(path, _READ, dir_fd=folder)
    try:
        checked(os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def checked(look: os.stat_result) -> os.stat_result:
    """Return what was found out of a file.

    Raises:
        OSError: It is something else.

    """
    if not stat.S_ISREG(look.st_mode):
        raise OSError(errno.EINVAL, "this is no regular file")
    return look
