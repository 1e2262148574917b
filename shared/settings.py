"""Settings from the environment: one frozen struct a service, read once, faults explained.

A field ``upload_max_file_size`` is read from ``UPLOAD_MAX_FILE_SIZE``. Its metadata says what
it means and in which unit; ``docs/settings.md`` is generated from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, get_args, get_origin

import msgspec

from shared.errors import StartupError
from shared.token_bucket import LIMIT_FORM

__all__ = [
    "MOST_PARTITIONS",
    "CommonSettings",
    "Origins",
    "Positive",
    "Seconds",
    "Secret",
    "bind_address",
    "describe",
    "load",
    "masked",
]

S = TypeVar("S", bound=msgspec.Struct)

Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
Secret: TypeAlias = Annotated[str, msgspec.Meta(extra={"secret": True})]
Origins: TypeAlias = tuple[str, ...]

MOST_PARTITIONS: Final = 100
"""Of a stream family: their names have two digits."""


def _limit(of: str) -> msgspec.Meta:
    return msgspec.Meta(
        pattern=LIMIT_FORM, description=f"{of}, of one caller, such as `5/s burst 9`"
    )


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service is told. Sizes are bytes, times are seconds."""

    public_bind: Annotated[
        str, msgspec.Meta(description="host:port of the public listener")
    ] = "0.0.0.0:8080"
    internal_bind: Annotated[
        str, msgspec.Meta(description="host:port for probes and metrics; `off` = none")
    ] = "0.0.0.0:9090"
    redis_url: Annotated[
        str | None,
        msgspec.Meta(
            description="redis://, rediss://, unix://, redis+sentinel://host,host/master or "
            "redis+cluster://host,host; `python -m services` starts its own",
            extra={"secret": True},
        ),
    ] = None
    data_dir: Annotated[
        Path, msgspec.Meta(description="folder of the blobs and of the embedded Redis")
    ] = Path("./var")
    blob_store: Annotated[
        str,
        msgspec.Meta(
            description="file:///folder or s3://bucket/prefix; empty: `blobs` in DATA_DIR"
        ),
    ] = ""
    upload_lease: Annotated[
        Literal["auto", "redis"],
        msgspec.Meta(
            description="who may write: `auto` = locks of the file system, leases in Redis on "
            "S3; `redis` = leases on a file system too, if its locks do not span hosts"
        ),
    ] = "auto"
    s3_endpoint_url: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?)?$",
            description="URL of the S3 server; empty: Amazon's",
        ),
    ] = ""
    s3_region: Annotated[str, msgspec.Meta(description="region of the bucket")] = "us-east-1"
    s3_access_key_id: Annotated[
        str,
        msgspec.Meta(description="empty: what the environment or the machine's role gives"),
    ] = ""
    s3_secret_access_key: Annotated[
        Secret, msgspec.Meta(description="belongs to S3_ACCESS_KEY_ID")
    ] = ""
    s3_part_size: Annotated[
        int,
        msgspec.Meta(
            ge=5 * 1024**2,
            le=512 * 1024**2,
            description="least bytes of a part; more for files over 9,000 such parts",
        ),
    ] = 8 * 1024**2
    s3_parallel_parts: Annotated[
        int,
        msgspec.Meta(ge=1, le=16, description="parts of one upload that are sent at once"),
    ] = 4
    s3_checksums: Annotated[
        Literal["when_supported", "when_required"],
        msgspec.Meta(
            description="`when_required`: for servers that refuse newer checksum headers"
        ),
    ] = "when_supported"
    s3_patience: Annotated[
        Seconds,
        msgspec.Meta(description="seconds for which a call that fails is tried again"),
    ] = 20.0
    event_partitions: Annotated[
        int,
        msgspec.Meta(ge=1, le=MOST_PARTITIONS, description="partitions of each stream family"),
    ] = 16
    progress_ttl_seconds: Annotated[
        int, msgspec.Meta(ge=1, description="how long progress can be asked for, in seconds")
    ] = 3600
    progress_update_interval: Annotated[
        float,
        msgspec.Meta(gt=0, description="seconds between two progress events of one upload"),
    ] = 0.5
    progress_prefix: Annotated[
        str, msgspec.Meta(min_length=1, description="prefix of the progress keys in Redis")
    ] = "upload_progress"
    auth_mode: Annotated[
        Literal["open", "required"],
        msgspec.Meta(description="open: everyone is the local user; loopback only"),
    ] = "required"
    auth_jwt_secret: Annotated[
        Secret | None, msgspec.Meta(description="secret of HS256 tokens, 32 bytes or more")
    ] = None
    auth_jwt_public_key_file: Annotated[
        Path | None,
        msgspec.Meta(description="PEM file of keys for tokens: RSA, EC P-256, Ed25519"),
    ] = None
    auth_jwks_url: Annotated[
        str | None,
        msgspec.Meta(description="https URL of the issuer's keys; http only on loopback"),
    ] = None
    auth_jwt_algorithms: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="accepted algorithms, comma-separated; empty: `HS256` with a secret, "
            "else `RS256,ES256,EdDSA`"
        ),
    ] = ()
    auth_jwt_audience: Annotated[
        str | None, msgspec.Meta(description="required `aud`, if set")
    ] = None
    auth_jwt_issuer: Annotated[
        str | None, msgspec.Meta(description="required `iss`, if set")
    ] = None
    auth_jwt_leeway: Annotated[
        float, msgspec.Meta(ge=0, le=60, description="clock skew allowed in tokens, seconds")
    ] = 30.0
    auth_api_keys_file: Annotated[
        Path | None,
        msgspec.Meta(
            description="one key a line: prefix, SHA-256 of the secret (hex), tenant, scopes; "
            "re-read when it changes"
        ),
    ] = None
    cors_allowed_origins: Annotated[
        Origins, msgspec.Meta(description="origins of web pages, comma-separated; `*` = any")
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        msgspec.Meta(description="networks whose X-Forwarded-* are believed, comma-separated"),
    ] = ()
    public_url: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?)?$",
            description="base of URLs given to clients; empty: taken from the request",
        ),
    ] = ""
    rate_limit_enabled: Annotated[
        bool | None,
        msgspec.Meta(
            description="limit how often a caller may ask; empty: if AUTH_MODE=required"
        ),
    ] = None
    rate_limit_create: Annotated[str, _limit("POST")] = "50/s burst 1000"
    rate_limit_change: Annotated[
        str, _limit("HEAD, PATCH, PUT and DELETE: what running uploads need")
    ] = "500/s burst 5000"
    rate_limit_read: Annotated[str, _limit("GET, and sockets opened")] = "100/s burst 1000"
    rate_limit_login: Annotated[str, _limit("requests with bad credentials")] = (
        "50/s burst 1000"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], msgspec.Meta(description="least level")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"],
        msgspec.Meta(description="auto: console on a terminal, else JSON lines"),
    ] = "auto"
    shutdown_timeout: Annotated[
        float, msgspec.Meta(ge=0, description="seconds that running requests get at shutdown")
    ] = 20.0


def load(
    kind: type[S], environ: Mapping[str, str], defaults: Mapping[str, str] | None = None
) -> S:
    """Read ``kind`` from the environment.

    Args:
        kind: A struct of settings.
        environ: Variables; one that is empty or blank counts as unset.
        defaults: Values, by variable, that replace the struct's own defaults.

    Raises:
        StartupError: A value is not allowed; names the variable, the value and the rule.

    """
    given = {name: text for name, text in environ.items() if text.strip()}
    chosen = {**(defaults or {}), **given}
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        text = chosen.get(field.name.upper())
        if text is not None:
            values[field.name] = _value(field.name.upper(), field.type, text)
    return kind(**values)


_TRUTHS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _value(name: str, kind: Any, text: str) -> Any:
    raw: Any = text.strip()
    plain = _plain(kind)
    if get_origin(plain) is tuple:
        raw = tuple(part.strip() for part in raw.split(",") if part.strip())
    elif plain is bool:
        raw = _TRUTHS.get(raw.lower(), raw)
    try:
        value = msgspec.convert(raw, kind, strict=False, dec_hook=_decode)
        if value == math.inf:  # passes for greater than any least value
            raise msgspec.ValidationError("Expected a finite number")
    except msgspec.ValidationError as exc:
        shown = "***" if _is_secret(kind) else repr(text)
        rule = re.sub(r"^(Expected|Invalid) ", lambda m: m[0].lower(), str(exc))
        raise StartupError(f"{name}={shown}: {rule}") from exc
    return value


def _decode(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError


def _plain(kind: Any) -> Any:
    """Return the type below ``Annotated`` and ``| None``."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    choices = [one for one in get_args(kind) if one is not type(None)]
    if type(None) in get_args(kind) and len(choices) == 1:
        return _plain(choices[0])
    return kind


def _metas(kind: Any) -> Iterator[msgspec.Meta]:
    for part in get_args(kind):
        if isinstance(part, msgspec.Meta):
            yield part
        elif part is not kind:
            yield from _metas(part)


def _is_secret(kind: Any) -> bool:
    return any((meta.extra or {}).get("secret") for meta in _metas(kind))


def masked(settings: msgspec.Struct) -> dict[str, str]:
    """Return the effective settings by variable, secrets as ``***``."""
    shown = {}
    for field in msgspec.structs.fields(settings):
        value = getattr(settings, field.name)
        hidden = _is_secret(field.type) and value is not None
        text = "***" if hidden else _text(value)
        shown[field.name.upper()] = text
    return shown


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def describe(kind: type[msgspec.Struct]) -> Iterator[tuple[str, str, str]]:
    """Yield variable, default and meaning of each setting, in the order of the struct."""
    for field in msgspec.structs.fields(kind):
        meaning = next((m.description for m in _metas(field.type) if m.description), "")
        yield field.name.upper(), _text(field.default), meaning


def bind_address(name: str, text: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` (``[::1]:8080`` for IPv6).

    Raises:
        StartupError: It has another form.

    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise StartupError(f"{name}={text!r}: expected host:port, such as 127.0.0.1:8080")
    return host, int(port)
