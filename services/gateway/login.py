"""Who is calling on a socket: said in the handshake, in the first message, and anew later.

Rights never outlive a failure: whoever fails to prove who he is loses the socket (security
items 24 and 26).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from services.gateway.closing import FORBIDDEN, UNAUTHORIZED, Closing
from services.gateway.dialects.protocol import Dialect, Message
from shared.errors import Unauthorized
from shared.identity import Authenticator, Principal, principal_from

__all__ = ["log_in", "refreshed"]


async def log_in(
    auth: Authenticator,
    request: web.Request,
    dialect: Dialect,
    next_text: Callable[[], Awaitable[str | None]],
    *,
    limit_s: float,
) -> tuple[Principal, Message | None]:
    """Return who is calling, and the first message if that is what told it.

    Args:
        auth: Knows good credentials.
        request: The handshake.
        dialect: Reads the first message; it may ask for something besides.
        next_text: Returns the next text message, ``None`` when the client has gone.
        limit_s: How long the first message may take.

    Raises:
        Closing: Nobody, or with bad credentials.

    """
    try:
        caller = await principal_from(auth, request)
        if caller is not None:
            return caller, None
        async with asyncio.timeout(limit_s):
            text = await next_text()
        first = dialect.parse(text) if text is not None else None
        if first is None or first.token is None:
            raise Closing(UNAUTHORIZED, "Authentication is required.")
        return await auth.from_token(first.token), first
    except Unauthorized as exc:
        raise Closing(UNAUTHORIZED, exc.message) from None
    except TimeoutError:
        raise Closing(UNAUTHORIZED, "Authentication is required.") from None


async def refreshed(auth: Authenticator, current: Principal, token: str) -> Principal:
    """Return the same caller as a newer token tells about him.

    Raises:
        Closing: The token is bad, or somebody else's.

    """
    try:
        caller = await auth.from_token(token)
    except Unauthorized as exc:
        raise Closing(UNAUTHORIZED, exc.message) from None
    if (caller.user_id, caller.tenant) != (current.user_id, current.tenant):
        raise Closing(FORBIDDEN, "The token is somebody else's.")
    return caller
