"""Errors that only the gateway returns; ``shared.errors`` has the others."""

from __future__ import annotations

from shared.errors import InvalidRequest, NotFound

__all__ = ["InvalidStatus", "ProgressNotFound"]


class ProgressNotFound(NotFound):
    """There is no progress for this session, or no more.

    Code from seed document 000.
    """

    error_code = "PROGRESS_NOT_FOUND"


class InvalidStatus(InvalidRequest):
    """The session is still uploading. Cancel the upload first, or let it end.

    Status and title from seed document 000, line 172.
    """

    error_code, title = "INVALID_STATUS", "Invalid status for deletion"
