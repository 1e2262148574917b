"""JSON Web Tokens: a token in, its verified claims out.

Knows nothing of requests, users or tenants: ``shared.authenticator`` reads the claims. Wraps
aiohttp-jwt, which is loose where RFC 7515, RFC 7519 and RFC 8725 are strict, so that no
token reaches it that it mishandles (security item 22). Which key may have signed a token is
up to a ``KeySource``; each key is bound to algorithms of its own kind.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import jwt
import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp_jwt import JWTMiddleware
from jwt.algorithms import HMACAlgorithm

from shared.errors import StartupError, Unauthorized

__all__ = [
    "BAD_TOKEN",
    "KeySource",
    "SharedSecret",
    "TokenKey",
    "TokenRules",
    "Tokens",
    "check_algorithms",
]

BAD_TOKEN: Final = 'Bearer error="invalid_token"'  # noqa: S105 - no password
"""Challenge for credentials that are there and no good (RFC 6750 section 3.1)."""

_MAX_TOKEN: Final = 8192  # characters; what one header line holds, and no issuer needs more
_MIN_SECRET: Final = 32  # bytes; RFC 7518 section 3.2: at least as long as the hash
_MAX_LEEWAY: Final = 60.0  # seconds; clocks further apart than this are broken
_MAX_EXP: Final = 253_402_300_799  # year 9999; refuses an issuer that counts milliseconds

_FORM: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# Keys that a token brings along, and rules that it demands. A verifier with keys of its own
# obeys none of them (RFC 8725 section 3.10), so a token that carries one isn't for us.
_REFUSED_HEADERS: Final = frozenset({"crit", "b64", "jku", "jwk", "x5u", "x5c"})
# RFC 8725 section 3.11: a logout or DPoP token of the same issuer is no access token.
_ACCEPTED_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_SECRET_ALGORITHMS: Final = ("HS256",)

_log = structlog.stdlib.get_logger(__name__)


class TokenRules(msgspec.Struct, frozen=True):
    """What is asked of the claims of every token, whoever signed it.

    Raises:
        StartupError: The leeway would revive old tokens.

    """

    audience: str | None = None
    """Must be among a token's ``aud``. None: a token that has an ``aud`` is meant for somebody
    else and is refused (RFC 7519 section 4.1.3)."""
    issuer: str | None = None
    """Must equal a token's ``iss``. None: anyone who has the key."""
    leeway: float = 30.0
    """Seconds by which clocks may differ for ``exp``, ``nbf`` and ``iat``."""

    def __post_init__(self) -> None:
        if not 0 <= self.leeway <= _MAX_LEEWAY:
            raise StartupError(
                f"AUTH_JWT_LEEWAY={self.leeway} is out of range: use 0 to 60 seconds"
            )


class TokenKey:
    """One key, verifying by aiohttp-jwt.

    Args:
        key: A secret, or a public key in PEM.
        algorithms: The only ones that are good with it; all of the key's own kind, or a public
            key could be used as an HMAC secret (CVE-2022-29217).
        rules: For the claims.

    """

    def __init__(self, key: str, algorithms: Sequence[str], rules: TokenRules) -> None:
        self.algorithms: Final = frozenset(algorithms)
        self._key: Final = key
        self._leeway: Final = rules.leeway
        self._rules: Final[dict[str, Any]] = {
            "algorithms": list(algorithms),
            "audience": rules.audience,
            "issuer": rules.issuer,
        }
        self._check: Final = JWTMiddleware(
            key,
            request_property="claims",
            token_getter=lambda presented: presented.token,
            **self._rules,
        )

    async def verified(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token that this key signed.

        Raises:
            jwt.InvalidSignatureError: Another key did.
            jwt.PyJWTError, web.HTTPException: It is not good.

        """
        presented = _Presented(token)
        try:
            await self._check(presented, _accept)
        except web.HTTPUnauthorized as refusal:
            cause = refusal.__context__
            if not isinstance(cause, (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError)):
                raise (cause or refusal) from None
            # The library has no leeway and stops at the first fault: verify all of it again.
            claims = jwt.decode(token, self._key, leeway=self._leeway, **self._rules)
        else:
            claims = presented["claims"]
        return claims


class KeySource(Protocol):
    """Knows the keys that tokens may be signed with."""

    @property
    def algorithms(self) -> frozenset[str]:
        """All that any of its keys, present or future, may be used with."""

    async def keys(self, algorithm: str, kid: str | None) -> Sequence[TokenKey]:
        """Return those that may have signed a token; few, and all for that algorithm.

        Raises:
            Unavailable: No keys could be had so far.

        """


class Tokens:
    """Verifies tokens.

    Args:
        source: Of the keys.

    """

    def __init__(self, source: KeySource) -> None:
        self._source: Final = source
        # The library logs a traceback for each bad token: anyone could fill the disk.
        logging.getLogger("aiohttp_jwt.middleware").addFilter(_drop)

    async def claims(self, token: str) -> Mapping[str, Any]:
        """Return what the token says, once all of it is verified.

        ``sub`` is a string, and ``exp`` a number of seconds up to the year 9999, for sure.

        Raises:
            Unauthorized: the token is not good, for whatever reason.
            Unavailable: no keys could be had so far.

        """
        try:
            header = _checked_header(token, self._source.algorithms)
            claims = await self._verified(token, header["alg"], header.get("kid"))
            _check_claims(claims)
        except (jwt.PyJWTError, web.HTTPException, ValueError, TypeError) as error:
            # The kind of fault is all that is told: the libraries' texts quote the token.
            _log.info("token_refused", reason=type(error).__name__)
            if isinstance(error, jwt.ExpiredSignatureError):
                raise Unauthorized("The token has expired.", challenge=BAD_TOKEN) from None
            raise Unauthorized("The token is not valid.", challenge=BAD_TOKEN) from None
        return claims

    async def _verified(self, token: str, algorithm: str, kid: str | None) -> Mapping[str, Any]:
        for key in await self._source.keys(algorithm, kid):
            try:
                return await key.verified(token)
            except jwt.InvalidSignatureError:
                continue
        raise jwt.InvalidSignatureError("no key of ours")


class SharedSecret:
    """The one key of those who share a secret with us.

    Args:
        secret: At least 32 bytes in UTF-8.
        algorithms: The only ones that a token may name.
        rules: For the claims.

    Raises:
        StartupError: a setting cannot be used; names the variable.

    """

    def __init__(self, secret: str, algorithms: Sequence[str], rules: TokenRules) -> None:
        check_algorithms(algorithms, _SECRET_ALGORITHMS, "a secret")
        key = TokenKey(_usable_secret(secret), algorithms, rules)
        self.algorithms: Final = key.algorithms
        self._keys: Final = (key,)

    async def keys(self, algorithm: str, kid: str | None) -> Sequence[TokenKey]:
        """Return the key, whatever the issuer calls it."""
        return self._keys


def check_algorithms(chosen: Sequence[str], possible: Sequence[str], source: str) -> None:
    """Refuse algorithms that don't fit the kind of key, so that a list never mixes kinds.

    Raises: StartupError: there are some, or none are chosen at all.
    """
    if not chosen or not set(possible).issuperset(chosen):
        raise StartupError(
            f"AUTH_JWT_ALGORITHMS={','.join(chosen)!r} is not possible with {source}:"
            f" use {','.join(possible)}"
        )


class _Presented(dict[str, Any]):
    """As much of a request as the library looks at: a token, and room for its claims.

    Not the request itself: the library checks no OPTIONS, reads headers loosely and leaves
    an untyped key behind. Besides, some tokens come in a WebSocket message.
    """

    method: Final = hdrs.METH_GET

    def __init__(self, token: str) -> None:
        super().__init__()
        self.token: Final = token


async def _accept(_presented: _Presented) -> None:
    """Stand where the library expects the handler of the request."""


def _drop(_record: logging.LogRecord) -> bool:
    return False


def _usable_secret(secret: str) -> str:
    advice = "set it to at least 32 random bytes, such as the output of: openssl rand -hex 32"
    try:
        length = len(secret.encode())
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)  # refuses public keys
    except (UnicodeEncodeError, jwt.InvalidKeyError):
        raise StartupError(f"AUTH_JWT_SECRET cannot be an HMAC secret: {advice}") from None
    if length < _MIN_SECRET:
        raise StartupError(f"AUTH_JWT_SECRET has {length} bytes, too few: {advice}")
    return secret


def _checked_header(token: str, algorithms: frozenset[str]) -> dict[str, Any]:
    """Return the header of what may reach the library.

    ``kid`` is a string if it is there. Raises: jwt.InvalidTokenError: it may not.
    """
    if len(token) > _MAX_TOKEN or not _FORM.fullmatch(token):
        raise jwt.DecodeError("form")
    header = jwt.get_unverified_header(token)
    named = header.get("alg")
    if not isinstance(named, str) or named not in algorithms:
        raise jwt.InvalidAlgorithmError("alg")
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise jwt.InvalidTokenError("header")
    if str(header.get("typ", "JWT")).lower() not in _ACCEPTED_TYPES:
        raise jwt.InvalidTokenError("typ")
    return header


def _check_claims(claims: Mapping[str, Any]) -> None:
    """Require what the library takes as optional. Raises: jwt.InvalidTokenError."""
    for name in ("exp", "sub"):
        if claims.get(name) is None:
            raise jwt.MissingRequiredClaimError(name)
    exp = claims["exp"]
    # The library takes whatever int() takes, such as "99".
    if not isinstance(exp, (int, float)) or not 0 < exp < _MAX_EXP:
        raise jwt.InvalidTokenError("exp")
