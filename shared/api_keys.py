"""API keys: who holds one acts for any user of its tenant, with its scopes.

A key is ``prefix_secret``. The file has one line a key: prefix, SHA-256 of the secret in hex,
tenant, scopes, and ``until=`` with a time in RFC 3339 if the key ends. Blanks or commas part
them; ``#`` begins a comment. The secret itself is nowhere, so it must not be guessable: a plain
hash is enough only for random ones (security item 23). Two lines of one tenant let a key be
replaced with an overlap. ``python -m shared.api_keys TENANT [SCOPE …]`` makes a key.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import structlog
from prometheus_client import Gauge

from shared.credentials import NO_CREDENTIALS
from shared.errors import StartupError, Unauthorized
from shared.principal import Principal, is_id

__all__ = ["ApiKeys", "MalformedKeyFile", "StoredKey", "new_key", "parse_keys"]

log = structlog.stdlib.get_logger(__name__)

LAST_USED = Gauge("api_key_last_used_seconds", "Time since the epoch, by prefix.", ["prefix"])

_CHECK_S: Final = 1.0
_MAX_FILE: Final = 1024 * 1024  # bytes; some 9,000 keys
_PREFIX: Final = re.compile(r"[A-Za-z0-9-]{1,32}")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_SCOPE: Final = re.compile(r"[A-Za-z0-9_.:/*-]{1,64}")
_SECRET: Final = re.compile(r"[A-Za-z0-9_.~+/=-]{32,256}")
"""Characters; 32 of hex are 128 bits."""


class StoredKey(msgspec.Struct, frozen=True):
    """What is known of a key."""

    digest: bytes
    """SHA-256 of the secret."""
    tenant: str
    scopes: frozenset[str]
    until: float | None
    """When it ends, seconds since the epoch. None: never."""


class MalformedKeyFile(Exception):
    """The file cannot be used; the text says which line, and quotes nothing of it."""


# Compared with when the prefix is unknown, so that this takes as long as a wrong secret.
_NOBODY: Final = StoredKey(secrets.token_bytes(32), "", frozenset(), None)


def parse_keys(text: str) -> Mapping[str, StoredKey]:
    """Return the keys of a file by prefix.

    Raises:
        MalformedKeyFile: A line has another form, or a prefix is there twice.

    """
    found: dict[str, StoredKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = _fields_of(line)
        if not fields:
            continue
        try:
            prefix, key = _parse(fields)
            if prefix in found:
                raise MalformedKeyFile("the prefix is there twice")
        except MalformedKeyFile as exc:
            raise MalformedKeyFile(f"line {number}: {exc}") from None
        found[prefix] = key
    return found


def _fields_of(line: str) -> list[str]:
    return line.partition("#")[0].replace(",", " ").split()


def _parse(fields: list[str]) -> tuple[str, StoredKey]:
    if len(fields) < 3:
        raise MalformedKeyFile("expected prefix, SHA-256 of the secret, tenant, scopes")
    prefix, digest, tenant, *rest = fields
    ends = [one.removeprefix("until=") for one in rest if one.startswith("until=")]
    scopes = [one for one in rest if not one.startswith("until=")]
    if not _PREFIX.fullmatch(prefix):
        raise MalformedKeyFile("a prefix has 1 to 32 letters, digits and hyphens")
    if not _DIGEST.fullmatch(digest):
        raise MalformedKeyFile("the SHA-256 of the secret must be 64 hex digits")
    if not is_id(tenant):
        raise MalformedKeyFile("a tenant has 1 to 128 printable characters and no space")
    if not all(_SCOPE.fullmatch(one) for one in scopes):
        raise MalformedKeyFile("a scope has 1 to 64 letters, digits and _.:/*-")
    return prefix, StoredKey(bytes.fromhex(digest), tenant, frozenset(scopes), _end(ends))


def _end(texts: list[str]) -> float | None:
    if not texts:
        return None
    try:
        (text,) = texts
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            raise ValueError("no offset from UTC")
    except ValueError:
        raise MalformedKeyFile(
            "expected one until=, such as until=2030-01-01T00:00:00Z"
        ) from None
    return at.timestamp()


class ApiKeys:
    """The keys of a file, as they are now.

    The file is looked at when a key is shown, once a second at most, and read again when it
    has changed. If it cannot be used then, the keys before stay good and an error is logged.

    Args:
        path: Of the file; may be a link that is replaced, as mounted secrets are.

    Raises:
        StartupError: It cannot be used.

    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._stamp = self._stamp_now()
        self._checked_at = time.monotonic()
        try:
            self._keys = self._read()
        except (OSError, MalformedKeyFile) as exc:
            raise StartupError(f"AUTH_API_KEYS_FILE={path}: {_reason(exc)}") from None

    async def principal(self, key: str, username: str) -> Principal:
        """Return for whom the holder of a key calls.

        Raises:
            Unauthorized: The key is not good, or nobody can have that name.

        """
        await self._refresh()
        prefix, _, secret = key.partition("_")
        stored = self._keys.get(prefix, _NOBODY)
        fits = _SECRET.fullmatch(secret) is not None
        digest = hashlib.sha256(secret[:256].encode("utf-8", "replace")).digest()
        if not (hmac.compare_digest(digest, stored.digest) and fits):
            raise _refused("The API key is not valid.")
        if stored.until is not None and stored.until <= time.time():
            raise _refused("The API key has expired.")
        if not is_id(username):
            raise _refused("The username is not valid.")
        LAST_USED.labels(prefix).set_to_current_time()
        return Principal(username, stored.tenant, username, stored.scopes, stored.until)

    async def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < _CHECK_S:
            return
        self._checked_at = now
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = await asyncio.to_thread(self._read)
        except (OSError, MalformedKeyFile) as exc:
            log.error("api_keys_not_read", file=str(self._path), reason=_reason(exc))
        else:
            log.info("api_keys_read", keys=len(self._keys))

    def _stamp_now(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> Mapping[str, StoredKey]:
        with self._path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise MalformedKeyFile(f"it is larger than {_MAX_FILE} bytes")
        try:
            return parse_keys(content.decode())
        except UnicodeDecodeError:
            raise MalformedKeyFile("it is not UTF-8") from None


def _reason(exc: OSError | MalformedKeyFile) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)


def _refused(message: str) -> Unauthorized:
    log.info("api_key_refused", reason=message)
    return Unauthorized(message, challenge=NO_CREDENTIALS)


def new_key(tenant: str, scopes: list[str]) -> tuple[str, str]:
    """Return a key, to be shown once, and its line for the file.

    Raises:
        MalformedKeyFile: The tenant or a scope has a form that the file cannot hold.

    """
    prefix, secret = f"upl{secrets.token_hex(4)}", secrets.token_hex(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    fields = [prefix, digest, tenant, *scopes]
    line = " ".join(fields)
    if _fields_of(line) != fields:
        raise MalformedKeyFile("the file has no room for blanks, commas and # in a field")
    parse_keys(line)
    return f"{prefix}_{secret}", line


def main(arguments: list[str]) -> int:
    """Print a new key and its line; return the exit code."""
    try:
        tenant, *scopes = arguments
        key, line = new_key(tenant, scopes)
    except (ValueError, MalformedKeyFile) as exc:
        reason = exc if isinstance(exc, MalformedKeyFile) else "name a tenant, then scopes"
        sys.stderr.write(f"error: {reason}\n")
        return 2
    sys.stdout.write(f"# the key, to be kept by its holder alone:\n{key}\n")
    sys.stdout.write(f"# its line for AUTH_API_KEYS_FILE:\n{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
