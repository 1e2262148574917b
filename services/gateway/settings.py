"""Settings of the gateway."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shared.settings import CommonSettings

__all__ = ["Settings"]


class Settings(CommonSettings, frozen=True, kw_only=True):
    """What the gateway is told. Times are seconds."""

    websocket_enabled: Annotated[
        bool, msgspec.Meta(description="whether sockets are served")
    ] = True
    websocket_max_connections_total: Annotated[
        int, msgspec.Meta(ge=1, description="sockets of one gateway process")
    ] = 1000
    websocket_ping_interval: Annotated[
        float, msgspec.Meta(gt=0, description="seconds between two protocol pings to a socket")
    ] = 30
    websocket_ping_timeout: Annotated[
        float, msgspec.Meta(gt=0, description="seconds a socket has to answer a ping")
    ] = 10
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
