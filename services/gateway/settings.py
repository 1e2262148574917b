"""Settings of the gateway."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from shared.settings import CommonSettings
from shared.token_bucket import LIMIT_FORM

__all__ = ["Settings", "most_of_user"]

_MOST_OF_USER: Final = 5


_TokenEntry: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}:[0-9a-f]{64}$")
]


class Settings(CommonSettings, frozen=True, kw_only=True):
    """What the gateway is told. Times are seconds."""

    websocket_enabled: Annotated[
        bool, msgspec.Meta(description="whether sockets are served")
    ] = True
    websocket_max_connections_total: Annotated[
        int, msgspec.Meta(ge=1, description="sockets of one gateway process")
    ] = 1000
    websocket_max_connections_per_user: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        msgspec.Meta(
            description="sockets of one user over all gateways; 0 = any number; empty: "
            "5 if AUTH_MODE=required, else any number",
        ),
    ] = None
    websocket_max_subscriptions: Annotated[
        int,
        msgspec.Meta(ge=1, description="uploads that one socket may ask for at a time"),
    ] = 1000
    websocket_message_rate: Annotated[
        str,
        msgspec.Meta(
            pattern=LIMIT_FORM, description="messages of one client, such as `5/s burst 9`"
        ),
    ] = "20/s burst 100"
    websocket_max_age: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            description="seconds after which a socket is told to reconnect, give or take a "
            "tenth; 0 = never",
        ),
    ] = 0
    websocket_drain_window: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            description="seconds over which sockets are closed at shutdown; ends within "
            "SHUTDOWN_TIMEOUT; 0 = all at once",
        ),
    ] = 10
    websocket_ping_interval: Annotated[
        float, msgspec.Meta(gt=0, description="seconds between two protocol pings to a socket")
    ] = 30
    websocket_ping_timeout: Annotated[
        float, msgspec.Meta(gt=0, description="seconds a socket has to answer a ping")
    ] = 10
    websocket_heartbeat_interval: Annotated[
        float,
        msgspec.Meta(gt=0, description="seconds of silence before a heartbeat message"),
    ] = 30
    websocket_auth_timeout: Annotated[
        float, msgspec.Meta(gt=0, description="seconds a socket has to say who is calling")
    ] = 10
    websocket_stall_timeout: Annotated[
        float, msgspec.Meta(gt=0, description="seconds a socket may take without draining")
    ] = 30
    progress_batch_size: Annotated[
        int, msgspec.Meta(ge=1, le=1000, description="sessions cleaned up in one go")
    ] = 100
    progress_cleanup_interval: Annotated[
        float,
        msgspec.Meta(gt=0, description="seconds between two rounds of cleaning up progress"),
    ] = 300
    internal_auth: Annotated[
        Literal["auto", "token", "mesh"],
        msgspec.Meta(
            description="who may report on jobs at INTERNAL_BIND: `mesh` = whoever the mesh in "
            "front lets through; `auto` = a token is needed, unless INTERNAL_BIND is loopback "
            "and there are none"
        ),
    ] = "auto"
    internal_tokens: Annotated[
        tuple[_TokenEntry, ...],
        msgspec.Meta(
            description="tokens of workers, comma-separated, each `name:` and the SHA-256 of "
            "the token in hex",
            extra={"secret": True},
        ),
    ] = ()
    rate_limit_jobs: Annotated[
        str,
        msgspec.Meta(
            pattern=LIMIT_FORM,
            description="reports on jobs, of one service, such as `5/s burst 9`",
        ),
    ] = "500/s burst 5000"
    websocket_reader: Annotated[
        Literal["auto", "aiohttp"],
        msgspec.Meta(
            description="who reads sockets: auto is the gateway itself where a trial at start "
            "says that it can; aiohttp costs more memory"
        ),
    ] = "auto"


def most_of_user(settings: Settings) -> int:
    """Return how many sockets one user may have over all gateways; 0: any number."""
    most = settings.websocket_max_connections_per_user
    if most is None:  # where everyone is one user, a limit for each is one for all
        most = _MOST_OF_USER if settings.auth_mode == "required" else 0
    return most
