"""Credentials in, ``Principal`` out: put together from the ``AUTH_*`` settings.

Fails closed: what is not proved good is refused, also while something behind it is away
(security items 22, 23 and 29).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec
import structlog

from shared.api_keys import ApiKeys
from shared.credentials import NO_CREDENTIALS
from shared.errors import StartupError, Unauthorized
from shared.jwks import Jwks
from shared.principal import Principal, is_id, is_name
from shared.public_keys import DEFAULT_ALGORITHMS, PublicKeyFile
from shared.tokens import BAD_TOKEN, KeySource, SharedSecret, TokenRules, Tokens

__all__ = ["Authenticator", "IdentitySettings", "authenticator"]

_log = structlog.stdlib.get_logger(__name__)


class IdentitySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The ``AUTH_*`` settings. Never shows the secret.

    Mode ``required`` needs at least one of the first four; of those for tokens, at most one.
    """

    auth_mode: Literal["open", "required"]
    auth_jwt_secret: str | None = None
    """At least 32 bytes."""
    auth_jwt_public_key_file: Path | None = None
    auth_jwks_url: str | None = None
    auth_api_keys_file: Path | None = None
    auth_jwt_algorithms: tuple[str, ...] = ()
    """Empty: HS256 with a secret, else RS256, ES256 and EdDSA."""
    auth_jwt_audience: str | None = None
    auth_jwt_issuer: str | None = None
    auth_jwt_leeway: float = 30.0

    def __repr__(self) -> str:
        return f"IdentitySettings(auth_mode={self.auth_mode!r}, …)"


class Authenticator(Protocol):
    """Turns credentials into principals."""

    @property
    def anonymous(self) -> Principal | None:
        """Who everybody is, whatever they show. None: they must show good credentials."""

    async def from_token(self, token: str) -> Principal:
        """Return whose it is.

        Raises:
            Unauthorized: It is not good, for whatever reason.
            Unavailable: The keys to check it with could not be had yet.

        """

    async def from_api_key(self, key: str, username: str) -> Principal:
        """Return for whom its holder calls. Raises: Unauthorized: it is not good."""


def authenticator(settings: IdentitySettings) -> Authenticator:
    """Build what ``AUTH_MODE`` asks for. Raises: StartupError: a setting is unusable."""
    return _Open() if settings.auth_mode == "open" else _Required(settings)


class _Open:
    anonymous: Final = Principal("local", "local", "local", frozenset({"admin"}), None)
    """There is nobody else, and only requests to this machine are answered."""

    async def from_token(self, token: str) -> Principal:
        return self.anonymous

    async def from_api_key(self, key: str, username: str) -> Principal:
        return self.anonymous


class _Required:
    anonymous: Final = None

    def __init__(self, settings: IdentitySettings) -> None:
        source, path = _key_source(settings), settings.auth_api_keys_file
        if source is None and path is None:
            raise StartupError(
                "AUTH_MODE=required needs AUTH_JWT_SECRET, AUTH_JWT_PUBLIC_KEY_FILE,"
                " AUTH_JWKS_URL or AUTH_API_KEYS_FILE: a secret is at least 32 random bytes,"
                " such as the output of: openssl rand -hex 32"
            )
        self._tokens: Final = None if source is None else Tokens(source)
        self._api_keys: Final = None if path is None else ApiKeys(path)

    async def from_token(self, token: str) -> Principal:
        if self._tokens is None:
            raise Unauthorized("Tokens are not accepted here.", challenge=NO_CREDENTIALS)
        return _principal(await self._tokens.claims(token))

    async def from_api_key(self, key: str, username: str) -> Principal:
        if self._api_keys is None:
            raise Unauthorized("API keys are not accepted here.", challenge=NO_CREDENTIALS)
        return await self._api_keys.principal(key, username)


def _key_source(settings: IdentitySettings) -> KeySource | None:
    sources = {
        "AUTH_JWT_SECRET": settings.auth_jwt_secret,
        "AUTH_JWT_PUBLIC_KEY_FILE": settings.auth_jwt_public_key_file,
        "AUTH_JWKS_URL": settings.auth_jwks_url,
    }
    given = [name for name, value in sources.items() if value]
    if len(given) > 1:
        raise StartupError(f"{' and '.join(given)} are set: tokens come from one of them only")
    rules = TokenRules(
        audience=settings.auth_jwt_audience,
        issuer=settings.auth_jwt_issuer,
        leeway=settings.auth_jwt_leeway,
    )
    algorithms = settings.auth_jwt_algorithms
    if settings.auth_jwt_secret:
        return SharedSecret(settings.auth_jwt_secret, algorithms or ("HS256",), rules)
    algorithms = algorithms or DEFAULT_ALGORITHMS
    if settings.auth_jwt_public_key_file:
        return PublicKeyFile(settings.auth_jwt_public_key_file, algorithms, rules)
    if settings.auth_jwks_url:
        return Jwks(settings.auth_jwks_url, algorithms, rules)
    return None


def _principal(claims: Mapping[str, Any]) -> Principal:
    user_id = claims["sub"]
    tenant = claims.get("tenant", claims.get("company", "default"))
    scope = claims.get("scope", "")
    scopes = scope.split() if isinstance(scope, str) else scope
    listed = isinstance(scopes, list) and all(isinstance(item, str) for item in scopes)
    if not (listed and is_id(user_id) and is_id(tenant)):
        _log.info("token_refused", reason="Claims")
        raise Unauthorized("The token's claims are not valid.", challenge=BAD_TOKEN)
    names = (claims.get("preferred_username"), claims.get("name"), user_id)
    username = next(name for name in names if is_name(name))
    return Principal(user_id, tenant, username, frozenset(scopes), float(claims["exp"]))
