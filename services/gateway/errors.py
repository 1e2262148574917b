"""Errors that only the gateway returns; ``shared.errors`` has the others."""

from __future__ import annotations

from shared.errors import ApiError, Conflict, InvalidRequest, NotFound

__all__ = [
    "InvalidStatus",
    "JobEnded",
    "NotJson",
    "ProgressNotFound",
    "SequenceGap",
    "Unprocessable",
    "UpgradeRequired",
]


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


class UpgradeRequired(ApiError):
    """Here is a WebSocket only: open one, of version 13 (RFC 6455 section 4.4)."""

    status, error_code, title = 426, "UPGRADE_REQUIRED", "Upgrade required"

    def __init__(self, message: str) -> None:
        headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        super().__init__(message, headers=headers)


class NotJson(ApiError):
    """The body is not declared as plain JSON. Send it as ``application/json``."""

    status, error_code, title = 415, "UNSUPPORTED_MEDIA_TYPE", "Unsupported media type"


class Unprocessable(ApiError):
    """The body is JSON, but not what is asked for; the text says where. Do not repeat it."""

    status, error_code, title = 422, "INVALID_REPORT", "Unprocessable content"


class SequenceGap(Conflict):
    """A report before this one has not come. Send those from ``details.expected`` on."""

    error_code = "SEQUENCE_GAP"


class JobEnded(Conflict):
    """The job has ended; nothing follows that."""

    error_code = "JOB_ENDED"
