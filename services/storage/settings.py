"""Settings of storage."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shared.settings import CommonSettings

__all__ = ["Settings"]


class Settings(CommonSettings, frozen=True, kw_only=True):
    """What storage is told. Times are seconds."""

    download_stall_timeout: Annotated[
        float, msgspec.Meta(gt=0, description="seconds a client may take to accept 4 KiB")
    ] = 60
    verify_rate: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="bytes per second that `services.storage verify` reads; 0 = no limit",
        ),
    ] = 50 * 1024**2
