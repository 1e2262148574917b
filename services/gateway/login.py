"""Who is calling on a socket: said in the handshake, in the first message, and anew later.

Rights never outlive a failure: whoever fails to prove who he is loses the socket (security
items 24 and 26).
"""

from __future__ import annotations

from aiohttp import WSCloseCode, web

from services.gateway.closing import FORBIDDEN, UNAUTHORIZED, Closing
from services.gateway.dialects.protocol import Message
from shared.errors import Unauthorized, Unavailable
from shared.identity import Authenticator, Principal, principal_from

__all__ = ["from_first_message", "from_handshake", "refreshed"]


async def from_handshake(
    auth: Authenticator, request: web.Request
) -> Principal | Closing | None:
    """Return who opens a socket; ``None``: the first message tells.

    Bad credentials are told on the open socket, with a code: a browser's script sees nothing
    of a handshake that was refused. So are those that cannot be checked right now.
    """
    try:
        return await principal_from(auth, request)
    except Unauthorized as exc:
        return Closing(UNAUTHORIZED, exc.message)
    except Unavailable as exc:
        return Closing(WSCloseCode.TRY_AGAIN_LATER, exc.message)


async def from_first_message(auth: Authenticator, message: Message) -> Principal:
    """Return who is calling, as the first message tells.

    Raises:
        Closing: It brings no token, or one that is bad or cannot be checked right now.

    """
    if message.token is None:
        raise Closing(UNAUTHORIZED, "Authentication is required.")
    return await _from_token(auth, message.token)


async def refreshed(auth: Authenticator, current: Principal, token: str) -> Principal:
    """Return the same caller as a newer token tells about him.

    Raises:
        Closing: The token is bad, somebody else's, or cannot be checked right now.

    """
    caller = await _from_token(auth, token)
    if (caller.user_id, caller.tenant) != (current.user_id, current.tenant):
        raise Closing(FORBIDDEN, "The token is somebody else's.")
    return caller


async def _from_token(auth: Authenticator, token: str) -> Principal:
    try:
        return await auth.from_token(token)
    except Unauthorized as exc:
        raise Closing(UNAUTHORIZED, exc.message) from None
    except Unavailable as exc:
        raise Closing(WSCloseCode.TRY_AGAIN_LATER, exc.message) from None
