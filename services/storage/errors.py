"""Errors that only storage returns; ``shared.errors`` has the others."""

from __future__ import annotations

from shared.errors import ApiError

__all__ = ["PreconditionFailed", "RangeNotSatisfiable"]


class PreconditionFailed(ApiError):
    """The file is not the one that the request's conditions name. Fetch it anew."""

    status, error_code, title = 412, "PRECONDITION_FAILED", "Precondition failed"


class RangeNotSatisfiable(ApiError):
    """No byte of the file is in the range. ``Content-Range`` tells its size."""

    status, error_code, title = 416, "RANGE_NOT_SATISFIABLE", "Range not satisfiable"
