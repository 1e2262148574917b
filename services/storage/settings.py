"""Settings of storage."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from shared.settings import CommonSettings

__all__ = ["Settings"]


class Settings(CommonSettings, frozen=True, kw_only=True):
    """What storage is told. Times are seconds."""

    download_stall_timeout: Annotated[
        float, msgspec.Meta(gt=0, description="seconds a client may take to accept 4 KiB")
    ] = 60
    s3_download: Annotated[
        Literal["proxy", "redirect"],
        msgspec.Meta(
            description="`redirect`: clients get files on S3 from S3_ENDPOINT_URL itself, by "
            "URLs that are good for a minute; they must be able to reach it"
        ),
    ] = "proxy"
    link_secrets: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=32)], ...],
        msgspec.Meta(
            description="secrets of signed links, comma-separated, 32 characters or more each; "
            "the first signs, all verify; empty: no links, or with AUTH_MODE=open links that "
            "end with the process",
            extra={"secret": True},
        ),
    ] = ()
    verify_rate: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="bytes per second that `services.storage verify` reads; 0 = no limit",
        ),
    ] = 50 * 1024**2
