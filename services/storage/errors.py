"""Errors that only storage returns; ``shared.errors`` has the others."""

from __future__ import annotations

from shared.errors import ApiError, Forbidden

__all__ = [
    "LinkEnded",
    "LinkInvalid",
    "LinksOff",
    "PreconditionFailed",
    "RangeNotSatisfiable",
]


class PreconditionFailed(ApiError):
    """The file is not the one that the request's conditions name. Fetch it anew."""

    status, error_code, title = 412, "PRECONDITION_FAILED", "Precondition failed"


class RangeNotSatisfiable(ApiError):
    """No byte of the file is in the range. ``Content-Range`` tells its size."""

    status, error_code, title = 416, "RANGE_NOT_SATISFIABLE", "Range not satisfiable"


class LinkInvalid(Forbidden):
    """The link was not made here, or not for this file. Copy all of it."""

    error_code = "LINK_INVALID"


class LinkEnded(ApiError):
    """The link was good once. Ask whoever has given it for another one."""

    status, error_code, title = 410, "LINK_EXPIRED", "Gone"


class LinksOff(ApiError):
    """This service makes no links: it has no secret to sign them with."""

    status, error_code, title = 501, "LINKS_NOT_CONFIGURED", "Not implemented"
