"""Settings of ingest."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from shared.blobs.store import FsyncPolicy
from shared.settings import CommonSettings

__all__ = ["Settings"]


class Settings(CommonSettings, frozen=True, kw_only=True):
    """What ingest is told. Sizes are bytes, times are seconds unless the name says hours."""

    upload_max_file_size: Annotated[
        int, msgspec.Meta(ge=0, lt=10**18, description="largest upload in bytes; 0 = no limit")
    ] = 524_288_000
    upload_max_chunk_size: Annotated[
        int, msgspec.Meta(ge=1, lt=10**18, description="largest chunk of a form in bytes")
    ] = 10_485_760
    upload_max_chunks: Annotated[
        int, msgspec.Meta(ge=1, le=10_000, description="most chunks of one file by form")
    ] = 100
    default_processing_priority: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=10, description="priority of processing where none is asked; 10 is highest"
        ),
    ] = 5
    upload_session_timeout_hours: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=87_600, description="hours without a byte after which an upload ends"
        ),
    ] = 24
    upload_idle_timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=86_400, description="seconds without a byte after which a request ends"
        ),
    ] = 60
    upload_min_rate: Annotated[
        float,
        msgspec.Meta(
            ge=0, description="least average bytes per second of a body; 0 = any rate will do"
        ),
    ] = 1024
    upload_min_rate_window: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=86_400, description="seconds for which UPLOAD_MIN_RATE forgives a pause"
        ),
    ] = 60
    upload_fsync: Annotated[
        FsyncPolicy,
        msgspec.Meta(
            description="force bytes to disk `always` before an offset is acknowledged, "
            "once when `complete`, or `never`"
        ),
    ] = "always"
    upload_reader: Annotated[
        Literal["auto", "aiohttp"],
        msgspec.Meta(
            description="who reads large bodies: auto is ingest itself where a trial at start "
            "says that it can; aiohttp costs twice the CPU"
        ),
    ] = "auto"
    ietf_send_104: Annotated[
        Literal["asked", "always", "never"],
        msgspec.Meta(
            description="interim answers of the IETF protocol: when the client names its draft "
            "(`asked`), also without (`always`), or `never`"
        ),
    ] = "asked"
    upload_allowed_extensions: Annotated[
        tuple[str, ...],
        msgspec.Meta(description="extensions that file names may have; empty: any"),
    ] = ()
    upload_denied_extensions: Annotated[
        tuple[str, ...], msgspec.Meta(description="extensions that file names may not have")
    ] = ()
    enable_deduplication: Annotated[
        bool, msgspec.Meta(description="store what a tenant has already only once, by SHA-256")
    ] = True
    clamd_url: Annotated[
        str,
        msgspec.Meta(
            description="ClamAV daemon that must clear each file, tcp://host:port or "
            "unix:///path; empty: no scan"
        ),
    ] = ""
    clamd_timeout: Annotated[
        float, msgspec.Meta(gt=0, le=3600, description="seconds that the daemon may be silent")
    ] = 120
    quota_bytes_per_user: Annotated[
        int, msgspec.Meta(ge=0, lt=10**15, description="bytes a user may keep; 0 = no limit")
    ] = 0
    quota_bytes_per_tenant: Annotated[
        int, msgspec.Meta(ge=0, lt=10**15, description="bytes a tenant may keep; 0 = no limit")
    ] = 0
    quota_open_uploads_per_user: Annotated[
        int, msgspec.Meta(ge=0, description="uploads a user may have open; 0 = no limit")
    ] = 0
    quota_open_uploads_per_tenant: Annotated[
        int, msgspec.Meta(ge=0, description="uploads a tenant may have open; 0 = no limit")
    ] = 0
    upload_min_free_bytes: Annotated[
        int,
        msgspec.Meta(ge=0, description="bytes that uploads leave free on the disk; 0 = none"),
    ] = 268_435_456
    upload_max_disk_percent: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=100, description="how full uploads may make the disk; 100 = full"
        ),
    ] = 100
    reaper_interval: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=86_400, description="seconds between two clean-ups; 0 = `reap` is run"
        ),
    ] = 300
