"""Who is calling on a socket: said in the handshake, in the first message, and anew later.

Rights never outlive a failure: whoever fails to prove who he is loses the socket (security
items 24 and 26).
"""

from __future__ import annotations

from aiohttp import web

from services.gateway.closing import FORBIDDEN, UNAUTHORIZED, Closing
from services.gateway.dialects.protocol import Message
from shared.errors import Unauthorized
from shared.identity import Authenticator, Principal, principal_from

__all__ = ["from_first_message", "from_handshake", "refreshed"]


async def from_handshake(
    auth: Authenticator, request: web.Request
) -> Principal | Closing | None:
    """Return who opens a socket; ``None``: the first message tells.

    Bad credentials are told on the open socket, with a code: a browser's script sees nothing
    of a handshake that was refused.
    """
    try:
        return await principal_from(auth, request)
    except Unauthorized as exc:
        return Closing(UNAUTHORIZED, exc.message)


async def from_first_message(auth: Authenticator, message: Message) -> Principal:
    """Return who is calling, as the first message tells.

    Raises:
        Closing: It brings no token, or a bad one.

    """
    if message.token is None:
        raise Closing(UNAUTHORIZED, "Authentication is required.")
    try:
        return await auth.from_token(message.token)
    except Unauthorized as exc:
        raise Closing(UNAUTHORIZED, exc.message) from None


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
