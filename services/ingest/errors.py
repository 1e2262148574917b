"""Errors that only ingest returns; ``shared.errors`` has the others."""

from __future__ import annotations

from typing import Final

from shared.errors import ApiError, Conflict, InvalidRequest, PayloadTooLarge

__all__ = [
    "BodyStalled",
    "ChecksumMismatch",
    "ChunkConflict",
    "CompletedUpload",
    "ContentMismatch",
    "DigestMismatch",
    "DigestUnreadable",
    "FileRefused",
    "Gone",
    "HashMismatch",
    "InconsistentLength",
    "Locked",
    "OffsetMismatch",
    "OverLength",
    "OverLimit",
    "ProtocolMismatch",
    "QuotaExceeded",
    "SessionMismatch",
    "SessionOver",
    "UnsupportedMediaType",
    "VersionUnsupported",
]

_PROBLEMS: Final = "https://iana.org/assignments/http-problem-types#"


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
    problem_type = f"{_PROBLEMS}digest-mismatching-values"


class OffsetMismatch(Conflict):
    """The client's idea of the offset is stale. Ask with HEAD, then resume."""

    error_code = "OFFSET_MISMATCH"
    problem_type = f"{_PROBLEMS}mismatching-upload-offset"


class InconsistentLength(InvalidRequest):
    """The lengths that were told for an upload contradict each other.

    Protocol item 115.
    """

    error_code = "INCONSISTENT_LENGTH"
    problem_type = f"{_PROBLEMS}inconsistent-upload-length"


class OverLength(InconsistentLength):
    """The upload would become longer than was told. It has ended; start a new one."""

    error_code = "UPLOAD_OVER_LENGTH"


class OverLimit(PayloadTooLarge):
    """The upload became larger than is allowed, and has ended."""


class CompletedUpload(InvalidRequest):
    """Nothing can be added to a complete upload.

    Protocol item 150.
    """

    error_code = "UPLOAD_COMPLETED"
    problem_type = f"{_PROBLEMS}completed-upload"


class ProtocolMismatch(ApiError):
    """An upload is continued in the protocol that opened it, which tells when it ends."""

    status, error_code, title = 403, "PROTOCOL_MISMATCH", "Forbidden"


class DigestUnreadable(InvalidRequest):
    """A digest that is to be checked cannot be read (RFC 9530)."""

    error_code = "INVALID_DIGEST"
    problem_type = f"{_PROBLEMS}digest-invalid-values"


class DigestMismatch(InvalidRequest):
    """A body is not what its digest says. It was thrown away; send it again."""

    error_code = "DIGEST_MISMATCH"
    problem_type = f"{_PROBLEMS}digest-mismatching-values"


class Gone(ApiError):
    """The upload was not continued in time. Start a new one."""

    status, error_code, title = 410, "UPLOAD_EXPIRED", "Gone"


class Locked(ApiError):
    """Another request writes to the upload, or has taken over from this one. Retry."""

    status, error_code, title = 423, "UPLOAD_LOCKED", "Locked"


class QuotaExceeded(PayloadTooLarge):
    """The user, or the tenant, keeps too much here. Delete something, then start again.

    413 and not 507: the server has room, and clients try 5xx again.
    """

    error_code = "QUOTA_EXCEEDED"


class BodyStalled(ApiError):
    """No byte came for too long, or too few did. What came before is kept; resume."""

    status, error_code, title = 408, "BODY_STALLED", "Request timeout"


class ChecksumMismatch(ApiError):
    """The body is not what its checksum says. It was thrown away; send it again.

    The status is tus's own (item 81); other protocols have theirs.
    """

    status, error_code, title = 460, "CHECKSUM_MISMATCH", "Checksum Mismatch"


class SessionMismatch(Conflict):
    """The form contradicts what its session was opened with. Open another session."""

    error_code = "SESSION_MISMATCH"


class ChunkConflict(Conflict):
    """The chunk was received before, with other bytes. The first ones stay."""

    error_code = "CHUNK_CONFLICT"


class FileRefused(ApiError):
    """The file is whole, but not what it was declared to be. The code says what is wrong."""

    status, error_code, title = 422, "FILE_REFUSED", "Unprocessable content"


class SessionOver(Conflict):
    """The session has ended, and not in the way that the request needs. Open another one."""

    error_code = "SESSION_OVER"
