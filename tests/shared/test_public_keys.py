"""Tokens that are verified with public keys of a file, and keys that are no good."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519

from shared.authenticator import IdentitySettings, authenticator
from shared.errors import StartupError, Unauthorized
from shared.public_keys import DEFAULT_ALGORITHMS, PublicKeyFile
from shared.tokens import TokenRules, Tokens
from tests.shared.signing import KINDS, Issuer, forged, part, payload, rsa_issuer

SECRET: Final = "0123456789abcdef0123456789abcdef"


def tokens(
    path: Path,
    *issuers: Issuer,
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS,
    rules: TokenRules | None = None,
) -> Tokens:
    """Verify with the keys of these issuers, by way of a file."""
    path = path / "keys.pem"
    path.write_text("".join(one.pem for one in issuers))
    return Tokens(PublicKeyFile(path, algorithms, rules or TokenRules()))


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_key(tmp_path: Path, kind: str) -> None:
    """RSA, P-256 and Ed25519 verify what they signed, whatever the issuer calls the key."""
    issuer = KINDS[kind]()
    verifier = tokens(tmp_path, issuer)
    for token in (issuer.token(), issuer.named_token()):
        assert (await verifier.claims(token))["sub"] == "u-1"


async def test_several_keys(tmp_path: Path) -> None:
    """A file may hold keys of all kinds, two of one kind too, as while one replaces another."""
    issuers = [*(make() for make in KINDS.values()), rsa_issuer(number=2)]
    verifier = tokens(tmp_path, *issuers)
    for issuer in issuers:
        assert (await verifier.claims(issuer.token()))["sub"] == "u-1"
    with pytest.raises(Unauthorized):
        await verifier.claims(rsa_issuer(number=3).token())


async def test_rules_hold_for_public_keys(tmp_path: Path) -> None:
    """Audience, issuer and leeway are checked as they are with a secret."""
    issuer = KINDS["EdDSA"]()
    verifier = tokens(tmp_path, issuer, rules=TokenRules("uploads", "https://id.example", 30))
    good: dict[str, Any] = {"aud": "uploads", "iss": "https://id.example"}
    await verifier.claims(issuer.token(**good))
    await verifier.claims(issuer.token(**good, exp=time.time() - 20))
    faults: list[dict[str, Any]] = [
        {"aud": "other"},
        {"iss": "https://id"},
        {"exp": time.time() - 31},
    ]
    for bad in faults:
        with pytest.raises(Unauthorized):
            await verifier.claims(issuer.token(**{**good, **bad}))


OURS: Final = {kind: make() for kind, make in KINDS.items()}
STRANGERS: Final[dict[str, Callable[[], Issuer]]] = {
    "RS256": lambda: rsa_issuer(number=9),
    "ES256": KINDS["ES256"],
    "EdDSA": KINDS["EdDSA"],
}


def _other(algorithm: str) -> str:
    names = list(KINDS)
    return names[(names.index(algorithm) + 1) % len(names)]


def _renamed(ours: Issuer, algorithm: str) -> str:
    _, claims, signature = ours.token().split(".")
    return f"{part(json.dumps({'alg': algorithm}).encode())}.{claims}.{signature}"


def _with_own_key(ours: Issuer) -> str:
    stranger = STRANGERS[ours.algorithm]()
    return stranger.token({"jwk": stranger.jwk()})


def _changed(ours: Issuer) -> str:
    head, _, signature = ours.token().split(".")
    return f"{head}.{part(json.dumps(payload(sub='root')).encode())}.{signature}"


def _signed_by(ours: Issuer, signature: bytes) -> str:
    # CVE-2022-21449: a verifier that took r = s = 0 took anything.
    return f"{ours.token().rpartition('.')[0]}.{part(signature)}"


ATTACKS: Final[dict[str, Callable[[Issuer], str]]] = {
    # CVE-2022-29217: the public key is known to all, so it must never be a secret.
    "HS256 with the PEM": lambda ours: forged({"alg": "HS256"}, ours.pem.encode()),
    "HS256 with the PEM, cut": lambda ours: forged({"alg": "HS256"}, ours.pem.strip().encode()),
    "its own alg with the PEM": lambda ours: forged({"alg": ours.algorithm}, ours.pem.encode()),
    "HS256 with the JWK": lambda ours: forged(
        {"alg": "HS256"}, json.dumps(ours.jwk()).encode()
    ),
    "HS256 with nothing": lambda _: forged({"alg": "HS256"}, b""),
    "alg none": lambda _: forged({"alg": "none"}, b""),
    "alg none, no signature": lambda _: forged({"alg": "none"}).rpartition(".")[0] + ".",
    "alg in lower case": lambda ours: forged({"alg": ours.algorithm.lower()}),
    "alg of another kind": lambda ours: _renamed(ours, _other(ours.algorithm)),
    "alg HS512": lambda ours: forged({"alg": "HS512"}, ours.pem.encode()),
    "a stranger's key": lambda ours: STRANGERS[ours.algorithm]().token(),
    "a stranger's key by our name": lambda ours: STRANGERS[ours.algorithm]().token(
        {"kid": ours.kid}
    ),
    "jwk in the header": _with_own_key,
    "jku in the header": lambda ours: ours.token({"jku": "https://evil.example/keys"}),
    "x5u in the header": lambda ours: ours.token({"x5u": "https://evil.example/cert"}),
    "x5c in the header": lambda ours: ours.token({"x5c": ["MII"]}),
    "crit": lambda ours: ours.token({"crit": ["exp"]}),
    "kid a number": lambda ours: forged({"alg": ours.algorithm, "kid": 1}),
    "kid a list": lambda ours: forged({"alg": ours.algorithm, "kid": ["rsa-1"]}),
    "expired": lambda ours: ours.token(exp=time.time() - 31),
    "no exp": lambda ours: jwt.encode({"sub": "u-1"}, ours.private, ours.algorithm),
    "nbf ahead": lambda ours: ours.token(nbf=time.time() + 60),
    "for another audience": lambda ours: ours.token(aud="billing"),
    "typ of another token": lambda ours: ours.token({"typ": "logout+jwt"}),
    "payload changed": _changed,
    "signature of zeros": lambda ours: _signed_by(ours, bytes(64)),
    "signature empty": lambda ours: ours.token().rpartition(".")[0] + ".",
    "8193 characters": lambda ours: ours.token(pad="x" * 9000),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", KINDS)
async def test_security_item_22_forged_tokens(tmp_path: Path, kind: str, attack: str) -> None:
    """What was not signed by a key of ours, in the way of that key, is refused."""
    ours = OURS[kind]
    verifier = tokens(tmp_path, *OURS.values())
    await verifier.claims(ours.token())
    with pytest.raises(Unauthorized, match=r"not valid|expired"):
        await verifier.claims(ATTACKS[attack](ours))


@pytest.mark.parametrize(
    "issuer",
    [
        lambda: Issuer(ec.generate_private_key(ec.SECP384R1()), "ES384"),
        lambda: Issuer(ec.generate_private_key(ec.SECP256K1()), "ES256K"),
        lambda: Issuer(ed448.Ed448PrivateKey.generate(), "EdDSA"),
    ],
    ids=["P-384", "secp256k1", "Ed448"],
)
async def test_security_item_22_wrong_curve(
    tmp_path: Path, issuer: Callable[[], Issuer]
) -> None:
    """A key on another curve stops the start, and a token signed on one is refused."""
    other = issuer()
    with pytest.raises(StartupError, match="AUTH_JWT_PUBLIC_KEY_FILE"):
        tokens(tmp_path, other)
    verifier = tokens(tmp_path, *OURS.values())
    with pytest.raises(Unauthorized):
        await verifier.claims(other.token())
    with pytest.raises(Unauthorized):
        await verifier.claims(_renamed(other, "ES256"))


@pytest.mark.parametrize("bits", [1024, 2047])
def test_security_item_22_weak_key(tmp_path: Path, bits: int) -> None:
    """An RSA key below 2048 bits stops the start."""
    with pytest.raises(StartupError, match=f"{bits} bits"):
        tokens(tmp_path, rsa_issuer(bits))


@pytest.mark.parametrize(
    "algorithms",
    [
        ("HS256",),
        ("RS256", "HS256"),
        ("none",),
        ("RS256", "none"),
        ("rs256",),
        ("ES384",),
        ("ES256K",),
    ],
)
def test_security_item_22_mixed_algorithms(tmp_path: Path, algorithms: tuple[str, ...]) -> None:
    """A list of algorithms that isn't for public keys alone stops the start."""
    with pytest.raises(StartupError, match="AUTH_JWT_ALGORITHMS"):
        tokens(tmp_path, rsa_issuer(), algorithms=algorithms)


async def test_only_the_listed_algorithms(tmp_path: Path) -> None:
    """A key is used with those algorithms of its kind that are listed, and with no others."""
    verifier = tokens(tmp_path, rsa_issuer(), algorithms=("PS256",))
    key = rsa_issuer().private
    await verifier.claims(jwt.encode(payload(), key, "PS256"))
    for algorithm in ("RS256", "PS512"):
        with pytest.raises(Unauthorized):
            await verifier.claims(jwt.encode(payload(), key, algorithm))


FILES: Final[dict[str, Callable[[], str]]] = {
    "empty": lambda: "",
    "no PEM": lambda: "secret",
    "a private key": lambda: rsa_issuer().private_pem,
    "a private key too": lambda: rsa_issuer().pem + KINDS["EdDSA"]().private_pem,
    "a certificate": lambda: rsa_issuer().pem.replace("PUBLIC KEY", "CERTIFICATE"),
    "no key": lambda: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    "cut": lambda: rsa_issuer().pem + rsa_issuer().pem[:200],
    "17 keys": lambda: rsa_issuer().pem * 17,
    "not ASCII": lambda: rsa_issuer().pem + "ü",
    "a key for other algorithms": lambda: KINDS["EdDSA"]().pem,
    "huge": lambda: rsa_issuer().pem + " " * 300_000,
}


@pytest.mark.parametrize("kind", FILES)
def test_unusable_file(tmp_path: Path, kind: str) -> None:
    """A file of anything but public keys that are fit stops the start, in one line."""
    path = tmp_path / "keys.pem"
    path.write_text(FILES[kind]())
    with pytest.raises(StartupError, match="AUTH_JWT_PUBLIC_KEY_FILE") as refused:
        PublicKeyFile(path, ("RS256",), TokenRules())
    assert "\n" not in str(refused.value)
    assert "PRIVATE" not in str(refused.value)


def test_missing_file(tmp_path: Path) -> None:
    """So does one that is not there, or is a folder."""
    for path in (tmp_path / "none.pem", tmp_path):
        with pytest.raises(StartupError, match="AUTH_JWT_PUBLIC_KEY_FILE"):
            PublicKeyFile(path, ("RS256",), TokenRules())


async def test_text_around_the_keys(tmp_path: Path) -> None:
    """Comments, Windows line ends and the older form of RSA keys do not matter."""
    path = tmp_path / "keys.pem"
    path.write_text("# the issuer's\r\n" + OURS["RS256"].pem.replace("\n", "\r\n"))
    verifier = Tokens(PublicKeyFile(path, ("RS256",), TokenRules()))
    await verifier.claims(OURS["RS256"].token())


@pytest.mark.parametrize(
    "extra",
    [
        {"auth_jwt_secret": SECRET},
        {"auth_jwks_url": "https://id.example/keys"},
        {"auth_jwt_secret": SECRET, "auth_jwks_url": "https://id.example/keys"},
    ],
)
def test_one_source_of_keys(tmp_path: Path, extra: dict[str, str]) -> None:
    """Two sources at once stop the start: one would be a way in that nobody thinks of."""
    path = tmp_path / "keys.pem"
    path.write_text(rsa_issuer().pem)
    settings = IdentitySettings(
        auth_mode="required", auth_jwt_public_key_file=path, auth_jwt_secret=None
    )
    authenticator(settings)
    changed = {name: getattr(settings, name) for name in settings.__struct_fields__} | extra
    with pytest.raises(StartupError, match=" and ") as refused:
        authenticator(IdentitySettings(**changed))
    assert SECRET not in str(refused.value)


def test_some_source_is_needed() -> None:
    """Mode ``required`` without any way to prove anything does not start."""
    with pytest.raises(StartupError, match="AUTH_API_KEYS_FILE"):
        authenticator(IdentitySettings(auth_mode="required"))


async def test_claims_become_a_principal(tmp_path: Path) -> None:
    """A token by a public key makes the same principal as one by a secret."""
    path = tmp_path / "keys.pem"
    issuer = Issuer(ed25519.Ed25519PrivateKey.generate(), "EdDSA")
    path.write_text(issuer.pem)
    auth = authenticator(IdentitySettings(auth_mode="required", auth_jwt_public_key_file=path))
    who = await auth.from_token(issuer.token(scope="read admin"))
    assert (who.user_id, who.tenant, sorted(who.scopes)) == ("u-1", "acme", ["admin", "read"])
    with pytest.raises(Unauthorized):
        await auth.from_api_key("upl_" + "x" * 64, "u-1")
