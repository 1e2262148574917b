"""A program that deletes a file on a full disk, as another upload comes to share its bytes.

    share_in_the_middle.py ROOT UPLOAD_ID LINK

The link is made in the moment before the file is hidden. It prints the size of the link.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from shared.blobs.filesystem import FilesystemStore
from shared.blobs.store import Due
from shared.sidecar import Sidecar
from tests.shared.blobs.conformance import ended


class FullStore(FilesystemStore):
    """A store that has no room for a record."""

    def save(self, sidecar: Sidecar, *, mark: bool = True) -> list[Due]:
        """Fail as a full disk does."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def delete(root: str, upload_id: str, link: str) -> None:
    """Try to delete the file."""
    store = FullStore(Path(root))
    whole = str(store.path(upload_id))

    def share(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(args[0]) == whole and not Path(link).exists():
            os.link(whole, link)

    sys.addaudithook(share)
    writer = await store.acquire(upload_id)
    with suppress(OSError):
        await writer.bury(ended(writer.sidecar))
    await writer.close()
    await store.close()
    sys.stdout.write(f"{Path(link).stat().st_size} {Path(whole).exists()}")


if __name__ == "__main__":
    asyncio.run(delete(*sys.argv[1:]))
