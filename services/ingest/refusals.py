"""What a client is told when the store fails: the one place that decides it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from services.ingest.errors import Locked
from shared.blobs.store import LeaseUnavailable, UploadNotFound
from shared.errors import ApiError, NotFound, StorageFull, Unavailable
from shared.leases import LeaseLost
from shared.sidecar import SidecarDamaged

__all__ = ["never_away", "refusing"]

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
    except LeaseLost as exc:
        log.warning("lease_lost", error=str(exc))
        raise Locked("The right to write was lost. Ask for the offset, then resume.") from None
    except OSError as exc:
        raise _store_error(exc) from exc


@contextmanager
def never_away() -> Iterator[None]:
    """Wrap what answers HEAD: what is away behind the service makes it 423, never 503.

    At any 5xx common clients take the upload for lost and begin again at byte 0; at 423 they
    ask again (contract, rule 3; item 178).

    Raises:
        Locked: Instead of ``Unavailable``.

    """
    try:
        with refusing():
            yield
    except Unavailable as exc:
        message = "The offset cannot be told just now. Ask again."
        raise Locked(message, headers=exc.headers) from None


def _store_error(exc: OSError) -> StorageFull | Unavailable:
    log.error("store_refused", error=repr(exc))
    if exc.errno in _NO_ROOM:
        return StorageFull("There is no room for more bytes. What was acknowledged is kept.")
    return Unavailable("The store failed. What was acknowledged is kept.")
