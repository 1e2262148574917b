"""Errors that only ingest returns; ``shared.errors`` has the others."""

from __future__ import annotations

from shared.errors import ApiError, Conflict

__all__ = [
    "BodyStalled",
    "ContentMismatch",
    "Gone",
    "HashMismatch",
    "Locked",
    "OffsetMismatch",
    "UnsupportedMediaType",
    "VersionUnsupported",
]


class VersionUnsupported(ApiError):
    """Another protocol version is asked for. ``Tus-Version`` names those that are spoken."""

    status, error_code, title = 412, "VERSION_UNSUPPORTED", "Precondition failed"


class UnsupportedMediaType(ApiError):
    """The body is not declared as what the request needs."""

    status, error_code, title = 415, "UNSUPPORTED_MEDIA_TYPE", "Unsupported media type"


class ContentMismatch(UnsupportedMediaType):
    """The bytes are not what name, type or kind say. The upload has failed."""

    error_code = "CONTENT_MISMATCH"


class HashMismatch(ApiError):
    """The bytes do not have the declared digest. The upload has failed; start a new one.

    No 460, which tus keeps for a piece that may be sent again: clients would repeat it.
    """

    status, error_code, title = 422, "HASH_MISMATCH", "Unprocessable content"


class OffsetMismatch(Conflict):
    """The client's idea of the offset is stale. Ask with HEAD, then resume."""

    error_code = "OFFSET_MISMATCH"


class Gone(ApiError):
    """The upload was not continued in time. Start a new one."""

    status, error_code, title = 410, "UPLOAD_EXPIRED", "Gone"


class Locked(ApiError):
    """Another request writes to the upload, or has taken over from this one. Retry."""

    status, error_code, title = 423, "UPLOAD_LOCKED", "Locked"


class BodyStalled(ApiError):
    """No byte came for too long. What came before is kept; resume."""

    status, error_code, title = 408, "BODY_STALLED", "Request timeout"
