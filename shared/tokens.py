"""JSON Web Tokens signed with a shared secret: a token in, its verified claims out.

Knows nothing of requests, users or tenants: ``shared.identity`` reads the claims. Wraps
aiohttp-jwt, which is loose where RFC 7515, RFC 7519 and RFC 8725 are strict, so that no
token reaches it that it mishandles (security item 22).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

import jwt
import structlog
from aiohttp import hdrs, web
from aiohttp_jwt import JWTMiddleware
from jwt.algorithms import HMACAlgorithm

from shared.errors import StartupError, Unauthorized

__all__ = ["BAD_TOKEN", "SharedSecretTokens"]

BAD_TOKEN: Final = 'Bearer error="invalid_token"'  # noqa: S105 - no password
"""Challenge for credentials that are there and no good (RFC 6750 section 3.1)."""

_MAX_TOKEN: Final = 8192  # characters; what one header line holds, and no issuer needs more
_MIN_SECRET: Final = 32  # bytes; RFC 7518 section 3.2: at least as long as the hash
_MAX_LEEWAY: Final = 60.0  # seconds; clocks further apart than this are broken
_MAX_EXP: Final = 253_402_300_799  # year 9999; refuses an issuer that counts milliseconds

_FORM: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# Keys that a token brings along, and rules that it demands. A verifier with one fixed key
# obeys none of them (RFC 8725 section 3.10), so a token that carries one isn't for us.
_REFUSED_HEADERS: Final = frozenset({"crit", "b64", "jku", "jwk", "x5u", "x5c"})
# RFC 8725 section 3.11: a logout or DPoP token of the same issuer is no access token.
_ACCEPTED_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
# One kind of algorithm for one kind of key: a list that mixes them lets a public key be
# used as an HMAC secret (CVE-2022-29217).
_ALGORITHMS: Final = frozenset({"HS256"})

_log = structlog.stdlib.get_logger(__name__)


class SharedSecretTokens:
    """Verifies tokens made with one secret.

    Args:
        secret: At least 32 bytes in UTF-8.
        algorithms: The only ones that a token may name.
        audience: Must be among a token's ``aud``. None: a token that has an ``aud`` is
            meant for somebody else and is refused (RFC 7519 section 4.1.3).
        issuer: Must equal a token's ``iss``. None: anyone who has the secret.
        leeway: Seconds by which clocks may differ for ``exp``, ``nbf`` and ``iat``.

    Raises:
        StartupError: a setting cannot be used; names the variable.

    """

    def __init__(
        self,
        secret: str | None,
        *,
        algorithms: tuple[str, ...],
        audience: str | None,
        issuer: str | None,
        leeway: float,
    ) -> None:
        self._secret: Final = _usable_secret(secret)
        if not algorithms or not _ALGORITHMS.issuperset(algorithms):
            raise StartupError(
                f"AUTH_JWT_ALGORITHMS={','.join(algorithms)!r} is not possible with a secret:"
                f" use {','.join(sorted(_ALGORITHMS))}"
            )
        if not 0 <= leeway <= _MAX_LEEWAY:
            raise StartupError(f"AUTH_JWT_LEEWAY={leeway} is out of range: use 0 to 60 seconds")
        self._leeway: Final = leeway
        self._rules: Final[dict[str, Any]] = {
            "algorithms": list(algorithms),
            "audience": audience,
            "issuer": issuer,
        }
        # The library logs a traceback for each bad token: anyone could fill the disk.
        logging.getLogger("aiohttp_jwt.middleware").addFilter(_drop)
        self._check: Final = JWTMiddleware(
            self._secret,
            request_property="claims",
            token_getter=lambda presented: presented.token,
            **self._rules,
        )

    async def claims(self, token: str) -> Mapping[str, Any]:
        """Return what the token says, once all of it is verified.

        ``sub`` is a string, and ``exp`` a number of seconds up to the year 9999, for sure.

        Raises:
            Unauthorized: the token is not good, for whatever reason.

        """
        try:
            _check_form(token, self._rules["algorithms"])
            claims = await self._verified(token)
            _check_claims(claims)
        except (jwt.PyJWTError, web.HTTPException, ValueError, TypeError) as error:
            # The kind of fault is all that is told: the libraries' texts quote the token.
            _log.info("token_refused", reason=type(error).__name__)
            if isinstance(error, jwt.ExpiredSignatureError):
                raise Unauthorized("The token has expired.", challenge=BAD_TOKEN) from None
            raise Unauthorized("The token is not valid.", challenge=BAD_TOKEN) from None
        return claims

    async def _verified(self, token: str) -> Mapping[str, Any]:
        presented = _Presented(token)
        try:
            await self._check(presented, _accept)
        except web.HTTPUnauthorized as refusal:
            cause = refusal.__context__
            if not isinstance(cause, (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError)):
                raise (cause or refusal) from None
            # The library has no leeway and stops at the first fault: verify all of it again.
            claims = jwt.decode(token, self._secret, leeway=self._leeway, **self._rules)
        else:
            claims = presented["claims"]
        return claims


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


def _usable_secret(secret: str | None) -> str:
    advice = "set it to at least 32 random bytes, such as the output of: openssl rand -hex 32"
    if not secret:
        raise StartupError(f"AUTH_MODE=required needs AUTH_JWT_SECRET: {advice}")
    try:
        length = len(secret.encode())
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)  # refuses public keys
    except (UnicodeEncodeError, jwt.InvalidKeyError):
        raise StartupError(f"AUTH_JWT_SECRET cannot be an HMAC secret: {advice}") from None
    if length < _MIN_SECRET:
        raise StartupError(f"AUTH_JWT_SECRET has {length} bytes, too few: {advice}")
    return secret


def _check_form(token: str, algorithms: list[str]) -> None:
    """Refuse what must not reach the library. Raises: jwt.InvalidTokenError."""
    if len(token) > _MAX_TOKEN or not _FORM.fullmatch(token):
        raise jwt.DecodeError("form")
    header = jwt.get_unverified_header(token)
    if header.get("alg") not in algorithms:
        raise jwt.InvalidAlgorithmError("alg")
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise jwt.InvalidTokenError("header")
    if str(header.get("typ", "JWT")).lower() not in _ACCEPTED_TYPES:
        raise jwt.InvalidTokenError("typ")


def _check_claims(claims: Mapping[str, Any]) -> None:
    """Require what the library takes as optional. Raises: jwt.InvalidTokenError."""
    for name in ("exp", "sub"):
        if claims.get(name) is None:
            raise jwt.MissingRequiredClaimError(name)
    exp = claims["exp"]
    # The library takes whatever int() takes, such as "99".
    if not isinstance(exp, (int, float)) or not 0 < exp < _MAX_EXP:
        raise jwt.InvalidTokenError("exp")
