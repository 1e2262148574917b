"""Keeps ``AUTH_MODE=open``, where everyone is the local user, to this machine."""

from __future__ import annotations

import functools
import ipaddress

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from shared.errors import Forbidden, StartupError

__all__ = ["is_loopback", "refuse_foreign_hosts", "require_loopback"]


@web.middleware
async def refuse_foreign_hosts(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer only requests that name a loopback host, while everyone is the local user.

    A web page elsewhere whose name resolves to 127.0.0.1 would otherwise be let in by the
    browser of the local user (DNS rebinding).

    Raises: Forbidden: the ``Host`` is another one.
    """
    host = request.headers.get(hdrs.HOST, "").rpartition("]")
    name = f"{host[0]}{host[1]}" or host[2].partition(":")[0]
    if not is_loopback(name):
        raise Forbidden("With AUTH_MODE=open only requests to a loopback host are answered.")
    return await handler(request)


def require_loopback(mode: str, bind_host: str | None) -> None:
    """Refuse a listener that others can reach while everyone is the local user.

    Raises: StartupError: ``AUTH_MODE=open`` and ``bind_host`` is not a loopback address.
    """
    if mode == "open" and not is_loopback(bind_host or ""):
        raise StartupError(
            f"AUTH_MODE=open trusts everyone, but PUBLIC_BIND listens on {bind_host or '*'}:"
            " set AUTH_MODE=required, or PUBLIC_BIND to 127.0.0.1"
        )


@functools.lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether a host, by name or address, is this machine and no other."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
