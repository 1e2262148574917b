"""What a client is told when the store fails: the one place that decides it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from shared.blobs.store import LeaseUnavailable, UploadNotFound
from shared.errors import ApiError, NotFound, StorageFull, Unavailable
from shared.sidecar import SidecarDamaged

__all__ = ["refusing"]

log = structlog.stdlib.get_logger(__name__)

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what the store raises into what a client is told.

    Raises:
        ApiError: Instead of what the store raised.

    """
    try:
        yield
    except UploadNotFound:
        raise NotFound("There is no such upload.") from None
    except LeaseUnavailable:
        raise Unavailable("No right to write can be granted just now. Try again.") from None
    except SidecarDamaged as exc:
        log.error("sidecar_damaged", error=str(exc))
        raise ApiError("The record of this upload is damaged.") from exc
    except ConnectionError:
        raise  # the client has gone
    except OSError as exc:
        raise _store_error(exc) from exc


def _store_error(exc: OSError) -> StorageFull | Unavailable:
    log.error("store_refused", error=repr(exc))
    if exc.errno in _NO_ROOM:
        return StorageFull("There is no room for more bytes. What was acknowledged is kept.")
    return Unavailable("The store failed. What was acknowledged is kept.")
