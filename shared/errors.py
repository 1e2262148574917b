"""The errors that reach people: refusals of a request, and refusals to start.

Knows nothing of HTTP libraries; ``shared.web`` renders ``ApiError`` as RFC 9457 problem+json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

__all__ = [
    "ApiError",
    "Conflict",
    "Forbidden",
    "InvalidRequest",
    "NotFound",
    "PayloadTooLarge",
    "Problem",
    "RateLimited",
    "StartupError",
    "StorageFull",
    "Unauthorized",
    "Unavailable",
]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every JSON error (RFC 9457); a kind of problem may have members besides."""

    type: Annotated[str, msgspec.Meta(description="URI of the kind of problem")]
    title: Annotated[str, msgspec.Meta(description="The kind of problem, for people")]
    status: Annotated[int, msgspec.Meta(description="The HTTP status")]
    detail: Annotated[str, msgspec.Meta(description="This problem, for people")]
    error_code: Annotated[str, msgspec.Meta(description="The kind of problem, for programs")]
    error_message: Annotated[str, msgspec.Meta(description="The same as `detail`")]
    details: Annotated[
        dict[str, Any],
        msgspec.Meta(description="`timestamp`, and the ids of what the request was about"),
    ]


class StartupError(Exception):
    """The process cannot start; the text is one line: what is wrong and what to do."""


class ApiError(Exception):
    """A request is refused.

    Args:
        message: Shown to the client: no path, key or cause that helps an attacker.
        headers: Extra response headers that belong to this refusal.
        details: Extra members of the body's ``details``, such as ``session_id``.
        error_code: Replaces the class's code where a document names another one.
        members: Extra members of the body beside ``details``, which a problem type defines.

    """

    status: int = 500
    error_code: str = "INTERNAL_SERVER_ERROR"
    title: str = "Internal server error"
    problem_type: str = "about:blank"
    """URI that identifies the kind of problem (RFC 9457 section 3.1.1)."""

    def __init__(
        self,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, object] | None = None,
        error_code: str | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message: Final = message
        self.headers: Final = dict(headers or {})
        self.details: Final = dict(details or {})
        self.members: Final = dict(members or {})
        if error_code is not None:
            self.error_code = error_code


class InvalidRequest(ApiError):
    """The request breaks the protocol. Send it differently."""

    status, error_code, title = 400, "INVALID_REQUEST", "Invalid request"


class Unauthorized(ApiError):
    """No or bad credentials. Send good ones; the response says how."""

    status, error_code, title = 401, "UNAUTHORIZED", "Unauthorized"

    def __init__(self, message: str, *, challenge: str = "Bearer") -> None:
        super().__init__(message, headers={"WWW-Authenticate": challenge})


class Forbidden(ApiError):
    """Good credentials, but the thing is somebody else's.

    Code from seed document 000.
    """

    status, error_code, title = 403, "UNAUTHORIZED_ACCESS", "Forbidden"


class NotFound(ApiError):
    """There is no such thing, or it is gone."""

    status, error_code, title = 404, "NOT_FOUND", "Not found"


class Conflict(ApiError):
    """The request does not fit the state of the thing. Read the state, then retry."""

    status, error_code, title = 409, "CONFLICT", "Conflict"


class PayloadTooLarge(ApiError):
    """The body, or what it announces, is over a limit."""

    status, error_code, title = 413, "PAYLOAD_TOO_LARGE", "Payload too large"


class RateLimited(ApiError):
    """There was too much of it. Retry after the time given (seconds)."""

    status, error_code, title = 429, "RATE_LIMITED", "Too many requests"

    def __init__(
        self, message: str, *, retry_after: int, error_code: str | None = None
    ) -> None:
        headers = {"Retry-After": str(retry_after)}
        super().__init__(message, headers=headers, error_code=error_code)


class Unavailable(ApiError):
    """Something behind the service is away. Retry after the time given (seconds)."""

    status, error_code, title = 503, "SERVICE_UNAVAILABLE", "Service unavailable"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class StorageFull(ApiError):
    """The disk has no room. What was acknowledged is kept; retry when there is room."""

    status, error_code, title = 507, "STORAGE_FULL", "Insufficient storage"
