"""Keys of an issuer that publishes them at a URL (RFC 7517), as it rotates them.

Fetched when the first token comes, again after five minutes, and when a token names a key that
is not known, though for such tokens not more often than every ten seconds: anyone can make
them. While the issuer is away its last keys stay good. Until it has answered once, nobody can
be let in, and callers are told to try again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import jwt
import msgspec
import structlog

from shared.errors import StartupError, Unavailable
from shared.lifecycle import TaskSet
from shared.loopback import is_loopback
from shared.public_keys import UnusableKey, check_public_algorithms, public_key
from shared.tokens import TokenKey, TokenRules

__all__ = ["Jwks", "MalformedKeySet", "keys_of"]

log = structlog.stdlib.get_logger(__name__)

_FETCH: Final = aiohttp.ClientTimeout(total=5.0)
_RETRY_S: Final = 1.0
"""How long an issuer is left alone that has not answered yet."""
_MAX_BYTES: Final = 256 * 1024
_MAX_KEYS: Final = 64
_KINDS: Final = ("RSA", "EC", "OKP")  # never "oct": that would publish a secret

KeySet = Mapping[str | None, Sequence[TokenKey]]
"""Keys by ``kid``, which is compared and used for nothing else; ``None`` has all of them."""


class MalformedKeySet(Exception):
    """What the issuer published has no key that can be used; the text says why."""


class _Document(msgspec.Struct):
    keys: list[dict[str, Any]]


def keys_of(document: bytes, algorithms: Sequence[str], rules: TokenRules) -> KeySet:
    """Return the keys of a JWK set; those that are not for us are left out (section 5).

    Args:
        document: As it was published.
        algorithms: The only ones that are wanted.
        rules: For the claims.

    Raises:
        MalformedKeySet: No key is left.

    """
    try:
        published = msgspec.json.decode(document, type=_Document).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedKeySet("it is no JWK set") from None
    found: dict[str | None, list[TokenKey]] = {None: []}
    reasons = []
    for entry in published[:_MAX_KEYS]:
        try:
            key = _key_of(entry, algorithms, rules)
        except UnusableKey as exc:
            reasons.append(str(exc))
            continue
        found[None].append(key)
        if isinstance(kid := entry.get("kid"), str):
            found.setdefault(kid, []).append(key)
    if not found[None]:
        raise MalformedKeySet(reasons[0] if reasons else "it has no keys")
    return found


def _key_of(entry: dict[str, Any], algorithms: Sequence[str], rules: TokenRules) -> TokenKey:
    if entry.get("kty") not in _KINDS:
        raise UnusableKey("a key that is not RSA, EC or OKP")
    if "d" in entry:
        raise UnusableKey("a private key, which everyone can read now")
    operations = entry.get("key_ops", ["verify"])
    verifies = isinstance(operations, list) and "verify" in operations
    if entry.get("use", "sig") != "sig" or not verifies:
        raise UnusableKey("a key that is not for signatures")
    material = {name: value for name, value in entry.items() if name != "alg"}
    try:
        key = jwt.PyJWK(material).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise UnusableKey(f"a key that cannot be read ({type(exc).__name__})") from None
    return public_key(key, [one for one in algorithms if entry.get("alg", one) == one], rules)


class Jwks:
    """The keys of one issuer.

    Args:
        url: https, or http on loopback.
        algorithms: The only ones that a token may name.
        rules: For the claims.
        renew_s: Age at which keys are fetched again.
        pause_s: Least time between two fetches for tokens whose key is not known.

    Raises:
        StartupError: The URL or the algorithms cannot be used; names the variable.

    """

    def __init__(
        self,
        url: str,
        algorithms: Sequence[str],
        rules: TokenRules,
        *,
        renew_s: float = 300.0,
        pause_s: float = 10.0,
    ) -> None:
        check_public_algorithms(algorithms)
        self._url: Final = _checked_url(url)
        self.algorithms: Final = frozenset(algorithms)
        self._wanted: Final = tuple(algorithms)
        self._rules: Final = rules
        self._renew_s: Final = renew_s
        self._pause_s: Final = pause_s
        self._keys: KeySet | None = None
        self._tried_at = -float("inf")
        self._fetching: asyncio.Event | None = None
        self._tasks: Final = TaskSet("jwks")

    async def keys(self, algorithm: str, kid: str | None) -> Sequence[TokenKey]:
        """Return those that may have signed; fetch them first where that may help.

        Raises: Unavailable: the issuer has not answered yet.
        """
        age = time.monotonic() - self._tried_at
        if self._keys is None:
            if self._fetching is not None or age > _RETRY_S:
                await self._fetched()
        elif kid not in self._keys and age > self._pause_s:
            await self._fetched()
        elif age > self._renew_s:
            self._begin()
        if self._keys is None:
            raise Unavailable("Tokens cannot be checked right now.")
        return [key for key in self._keys.get(kid, ()) if algorithm in key.algorithms]

    async def _fetched(self) -> None:
        """Wait for the fetch that runs, or for one that begins now."""
        await self._begin().wait()

    def _begin(self) -> asyncio.Event:
        # A task of its own: a caller who goes away must not take it from those who wait too.
        if self._fetching is None:
            self._fetching = asyncio.Event()
            self._tasks.start(self._fetch(self._fetching))
        return self._fetching

    async def _fetch(self, done: asyncio.Event) -> None:
        try:
            self._keys = keys_of(await self._document(), self._wanted, self._rules)
        except (aiohttp.ClientError, TimeoutError, OSError, MalformedKeySet) as exc:
            reason = str(exc) if isinstance(exc, MalformedKeySet) else repr(exc)
            log.error("jwks_not_fetched", reason=reason, kept=self._keys is not None)
        finally:
            self._tried_at = time.monotonic()
            self._fetching = None
            done.set()

    async def _document(self) -> bytes:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with (
            aiohttp.ClientSession(timeout=_FETCH, auto_decompress=False) as session,
            session.get(self._url, headers=headers, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise MalformedKeySet(f"the answer is {response.status}")
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > _MAX_BYTES:
                    raise MalformedKeySet(f"it is larger than {_MAX_BYTES} bytes")
        return bytes(body)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
        good = good and bool(host) and parts.username is None and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise StartupError(
            f"AUTH_JWKS_URL={url!r}: expected https://host/path; http only on loopback"
        )
    return url
