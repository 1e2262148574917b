"""Tokens and the secret behind them, without a server."""

from __future__ import annotations

import time
from typing import Any, Final

import jwt
import pytest

from shared.errors import StartupError, Unauthorized
from shared.tokens import SharedSecret, TokenRules, Tokens

SECRET: Final = "0123456789abcdef0123456789abcdef"
PEM: Final = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAabcdefgh\n-----END PUBLIC KEY-----\n"


def tokens(
    secret: str = SECRET,
    *,
    algorithms: tuple[str, ...] = ("HS256",),
    audience: str | None = None,
    issuer: str | None = None,
    leeway: float = 30.0,
) -> Tokens:
    """Build a verifier that checks no audience and no issuer, unless told."""
    return Tokens(SharedSecret(secret, algorithms, TokenRules(audience, issuer, leeway)))


def signed(**claims: object) -> str:
    """Return a token of user ``u`` that lives a minute, changed by ``claims``."""
    return jwt.encode({"sub": "u", "exp": time.time() + 60} | claims, SECRET, "HS256")


@pytest.mark.parametrize(
    "secret", ["", "short", "x" * 31, "\udcff" * 32, PEM, "ssh-ed25519 " + "A" * 60]
)
def test_unusable_secret(secret: str) -> None:
    """An empty, short or public secret stops the start, in one line that doesn't tell it."""
    with pytest.raises(StartupError, match="AUTH_JWT_SECRET") as refused:
        tokens(secret)
    text = str(refused.value)
    assert "\n" not in text
    assert not secret or secret not in text


@pytest.mark.parametrize(
    "algorithms", [(), ("none",), ("RS256",), ("HS256", "RS256"), ("hs256",), ("HS256", "none")]
)
def test_unusable_algorithms(algorithms: tuple[str, ...]) -> None:
    """Algorithms that don't fit a secret, or mix kinds of key, stop the start."""
    with pytest.raises(StartupError, match="AUTH_JWT_ALGORITHMS"):
        tokens(algorithms=algorithms)


@pytest.mark.parametrize("leeway", [-1.0, 60.1, float("inf"), float("nan")])
def test_unusable_leeway(leeway: float) -> None:
    """A leeway that would revive old tokens stops the start."""
    with pytest.raises(StartupError, match="AUTH_JWT_LEEWAY"):
        tokens(leeway=leeway)


async def test_claims_are_returned_whole() -> None:
    """Claims that nobody checks arrive too."""
    claims = await tokens().claims(signed(extra={"a": [1]}))
    assert (claims["sub"], claims["extra"]) == ("u", {"a": [1]})


async def test_longest_token() -> None:
    """A token of 8192 characters is good, and one of 8193 is not."""
    texts = [signed(exp=20_000_000_000, pad="x" * size) for size in range(6000, 6100)]
    by_length = {len(text): text for text in texts}
    await tokens().claims(by_length[8192])
    with pytest.raises(Unauthorized):
        await tokens().claims(by_length[8193])


async def test_audience_for_somebody_else() -> None:
    """Without an audience of our own, a token that names one is refused."""
    await tokens().claims(signed())
    with pytest.raises(Unauthorized):
        await tokens().claims(signed(aud="billing"))


async def test_issuer_does_not_matter_when_unset() -> None:
    """Without an issuer set, whoever has the secret may issue."""
    claims = await tokens().claims(signed(iss="anyone"))
    assert claims["iss"] == "anyone"


@pytest.mark.parametrize(
    ("leeway", "late", "good"),
    [(0.0, 2, False), (30.0, 25, True), (30.0, 35, False), (60.0, 55, True), (60.0, 65, False)],
)
async def test_leeway_for_the_end(leeway: float, late: int, good: bool) -> None:
    """A token is good until the leeway after its end, and not a moment longer."""
    expired = signed(exp=time.time() - late)
    if good:
        await tokens(leeway=leeway).claims(expired)
    else:
        with pytest.raises(Unauthorized, match="expired"):
            await tokens(leeway=leeway).claims(expired)


@pytest.mark.parametrize("name", ["nbf", "iat"])
async def test_leeway_for_the_start(name: str) -> None:
    """A clock ahead of ours is forgiven up to the leeway."""
    ahead: dict[str, Any] = {name: time.time() + 25}
    await tokens(leeway=30).claims(signed(**ahead))
    with pytest.raises(Unauthorized):
        await tokens(leeway=10).claims(signed(**ahead))


async def test_leeway_forgives_nothing_else() -> None:
    """A token past its end is checked for all the rest: its signature, audience and issuer."""
    late = {"sub": "u", "exp": time.time() - 5, "aud": "a", "iss": "i"}
    verifier = tokens(audience="a", issuer="i")
    await verifier.claims(jwt.encode(late, SECRET, "HS256"))
    for bad in (
        jwt.encode(late, SECRET[::-1], "HS256"),
        jwt.encode(late | {"aud": "b"}, SECRET, "HS256"),
        jwt.encode(late | {"iss": "j"}, SECRET, "HS256"),
        jwt.encode({"exp": late["exp"], "aud": "a", "iss": "i"}, SECRET, "HS256"),
    ):
        with pytest.raises(Unauthorized, match="not valid"):
            await verifier.claims(bad)
