"""Keys that an issuer publishes: a real server that rotates them, fails and misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import example, given
from hypothesis import strategies as st

from shared.authenticator import IdentitySettings, authenticator
from shared.errors import StartupError, Unauthorized, Unavailable
from shared.jwks import Jwks, MalformedKeySet, keys_of
from shared.public_keys import DEFAULT_ALGORITHMS
from shared.tokens import TokenRules, Tokens
from tests.shared.signing import KINDS, Issuer, forged, rsa_issuer

FIRST: Final = rsa_issuer(number=1)
SECOND: Final = rsa_issuer(number=2)
STRANGER: Final = rsa_issuer(number=9)
ALWAYS: Final = 0.0


def published(*issuers: Issuer, **changes: object) -> bytes:
    """Return the key set of these issuers."""
    return json.dumps({"keys": [one.jwk(**changes) for one in issuers]}).encode()


class KeyServer:
    """What the issuer serves; a test changes it while it runs."""

    def __init__(self) -> None:
        self.body = published(FIRST)
        self.status = 200
        self.headers: dict[str, str] = {}
        self.before: Callable[[], Awaitable[None]] | None = None
        self.asked = 0
        self.url = ""

    async def answer(self, _: web.Request) -> web.Response:
        """Serve it."""
        self.asked += 1
        if self.before is not None:
            await self.before()
        return web.Response(body=self.body, status=self.status, headers=self.headers)


@pytest.fixture
async def issuer() -> AsyncIterator[KeyServer]:
    """An issuer's server on loopback."""
    keys = KeyServer()
    app = web.Application()
    app.router.add_get("/keys", keys.answer)
    server = TestServer(app)
    await server.start_server()
    keys.url = str(server.make_url("/keys"))
    yield keys
    await server.close()


def tokens(
    issuer: KeyServer,
    *,
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS,
    renew_s: float = 300,
    pause_s: float = 10,
) -> Tokens:
    """Verify with the keys at the URL."""
    source = Jwks(issuer.url, algorithms, TokenRules(), renew_s=renew_s, pause_s=pause_s)
    return Tokens(source)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_key(issuer: KeyServer, kind: str) -> None:
    """Keys of each kind verify, by name and without one; they are fetched once."""
    one = KINDS[kind]()
    issuer.body = published(STRANGER, one)
    verifier = tokens(issuer)
    for token in (one.named_token(), one.token(), one.named_token()):
        assert (await verifier.claims(token))["sub"] == "u-1"
    assert issuer.asked == 1


async def test_rotation(issuer: KeyServer) -> None:
    """A token that names a new key makes us fetch it; a key that was withdrawn ends then."""
    verifier = tokens(issuer, pause_s=ALWAYS)
    await verifier.claims(FIRST.named_token())
    issuer.body = published(FIRST, SECOND)
    await verifier.claims(SECOND.named_token())
    issuer.body = published(SECOND)
    await verifier.claims(FIRST.named_token())
    with pytest.raises(Unauthorized):
        await verifier.claims(STRANGER.named_token())
    with pytest.raises(Unauthorized):
        await verifier.claims(FIRST.named_token())
    assert issuer.asked == 4


async def test_withdrawn_keys_end_by_themselves(issuer: KeyServer) -> None:
    """Old keys are renewed beside the requests, which do not wait for it."""
    verifier = tokens(issuer, renew_s=0.05)
    await verifier.claims(FIRST.named_token())
    issuer.body = published(SECOND)
    gate = asyncio.Event()
    issuer.before = gate.wait  # type: ignore[assignment]
    await asyncio.sleep(0.06)
    for _ in range(3):
        await verifier.claims(FIRST.named_token())
    gate.set()
    async with asyncio.timeout(10):
        while True:
            try:
                await verifier.claims(FIRST.named_token())
            except Unauthorized:
                break
            await asyncio.sleep(0.01)


async def test_security_item_22_unknown_names_cost_little(issuer: KeyServer) -> None:
    """Tokens that name keys which nobody has make us fetch once in a while, not each time."""
    verifier = tokens(issuer)
    await verifier.claims(FIRST.named_token())
    for number in range(50):
        with pytest.raises(Unauthorized):
            await verifier.claims(STRANGER.token({"kid": f"unknown-{number}"}))
    assert issuer.asked == 1


async def test_one_fetch_for_all(issuer: KeyServer) -> None:
    """Callers who come together share a fetch; one who goes away takes it from nobody."""
    gate, reached = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        reached.set()
        await gate.wait()

    issuer.before = hold
    verifier = tokens(issuer)
    first = asyncio.ensure_future(verifier.claims(FIRST.named_token()))
    await reached.wait()
    others = [asyncio.ensure_future(verifier.claims(FIRST.token())) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert [one["sub"] for one in await asyncio.gather(*others)] == ["u-1"] * 20
    assert issuer.asked == 1


@pytest.mark.parametrize(
    "kid",
    [
        "../../../etc/passwd",
        "/dev/null",
        "rsa-1\0",
        "rsa-1' OR '1'='1",
        "http://127.0.0.1:1/keys",
        "RSA-1",
        "",
        "x" * 4000,
        "\ud800",
    ],
)
async def test_security_item_22_kid_is_only_a_name(issuer: KeyServer, kid: str) -> None:
    """A ``kid`` that looks like a path, a query or a URL names a key that is not there."""
    verifier = tokens(issuer, pause_s=ALWAYS)
    await verifier.claims(FIRST.named_token())
    with pytest.raises(Unauthorized):
        await verifier.claims(FIRST.token({"kid": kid}))


async def test_security_item_22_a_key_answers_for_its_name_only(issuer: KeyServer) -> None:
    """A token that names one key of the set and is signed by another is refused."""
    issuer.body = published(FIRST, SECOND)
    verifier = tokens(issuer)
    await verifier.claims(FIRST.named_token())
    with pytest.raises(Unauthorized):
        await verifier.claims(SECOND.token({"kid": FIRST.kid}))


async def test_security_item_22_public_key_as_a_secret(issuer: KeyServer) -> None:
    """Nothing that the issuer publishes can be used to sign (CVE-2022-29217)."""
    verifier = tokens(issuer)
    await verifier.claims(FIRST.named_token())
    for secret in (FIRST.pem, FIRST.pem.strip(), FIRST.jwk()["n"], json.dumps(FIRST.jwk())):
        for alg in ("HS256", "RS256"):
            with pytest.raises(Unauthorized):
                await verifier.claims(forged({"alg": alg, "kid": "rsa-1"}, secret.encode()))


async def test_security_item_22_the_set_names_no_algorithm(issuer: KeyServer) -> None:
    """A key whose entry names an algorithm is used with that one only (CVE-2026-48523)."""
    issuer.body = published(FIRST, alg="PS256")
    verifier = tokens(issuer, algorithms=("RS256", "PS256"))
    with pytest.raises(Unauthorized):
        await verifier.claims(FIRST.named_token())
    with pytest.raises(Unauthorized):
        await verifier.claims(forged({"alg": "PS256", "kid": "rsa-1"}, b""))


async def test_outage(issuer: KeyServer) -> None:
    """While the issuer fails, in whatever way, the keys that it gave stay good."""
    verifier = tokens(issuer, pause_s=ALWAYS)
    await verifier.claims(FIRST.named_token())
    for status, body in ((503, b""), (200, b"<html>"), (200, b'{"keys":[]}'), (404, b"")):
        issuer.status, issuer.body = status, body
        with pytest.raises(Unauthorized):
            await verifier.claims(SECOND.named_token())
        await verifier.claims(FIRST.named_token())
    assert issuer.asked == 5
    issuer.status, issuer.body = 200, published(SECOND)
    await verifier.claims(SECOND.named_token())


async def test_no_answer_yet(issuer: KeyServer) -> None:
    """An issuer that never answered lets nobody in, but does not make good tokens bad."""
    issuer.status = 500
    verifier = tokens(issuer)
    for _ in range(10):
        with pytest.raises(Unavailable):
            await verifier.claims(FIRST.named_token())
    assert issuer.asked == 1
    issuer.status = 200
    async with asyncio.timeout(10):
        while True:
            try:
                await verifier.claims(FIRST.named_token())
                break
            except Unavailable:
                await asyncio.sleep(0.05)


async def test_nobody_listens() -> None:
    """No server at all is the same."""
    server = KeyServer()
    server.url = "http://127.0.0.1:1/keys"
    with pytest.raises(Unavailable):
        await tokens(server).claims(FIRST.named_token())


async def test_no_redirects(issuer: KeyServer) -> None:
    """A redirect is not followed: it could lead into our own network, and off https."""
    issuer.status, issuer.headers = 302, {"Location": issuer.url}
    with pytest.raises(Unavailable):
        await tokens(issuer).claims(FIRST.named_token())
    assert issuer.asked == 1


async def test_huge_answer(issuer: KeyServer) -> None:
    """An answer is read up to a limit."""
    issuer.body = published(FIRST) + b" " * 300_000
    with pytest.raises(Unavailable):
        await tokens(issuer).claims(FIRST.named_token())


async def test_compressed_answer(issuer: KeyServer) -> None:
    """Nothing is inflated, so that a small answer cannot become a large one."""
    issuer.headers = {"Content-Encoding": "gzip"}
    issuer.body = gzip.compress(issuer.body)
    with pytest.raises(Unavailable):
        await tokens(issuer).claims(FIRST.named_token())


def usable(entries: list[Any]) -> int:
    """Return how many keys of a set can be used."""
    document = json.dumps({"keys": entries}).encode()
    return len(keys_of(document, DEFAULT_ALGORITHMS, TokenRules())[None])


UNUSABLE: Final[dict[str, dict[str, Any]]] = {
    "a secret": {"kty": "oct", "k": "A" * 60, "kid": "s", "alg": "HS256"},
    "for encryption": FIRST.jwk(use="enc"),
    "for other operations": FIRST.jwk(key_ops=["encrypt"]),
    "operations that are no list": FIRST.jwk(key_ops=7),
    "for HS256": FIRST.jwk(alg="HS256"),
    "for none": FIRST.jwk(alg="none"),
    "for ES256": FIRST.jwk(alg="ES256"),
    "no kind": FIRST.jwk(kty=...),
    "a list as kind": FIRST.jwk(kty=["RSA"]),
    "no modulus": FIRST.jwk(n=...),
    "garbage as modulus": FIRST.jwk(n="!!!"),
    "a number as modulus": FIRST.jwk(n=5),
    "weak": rsa_issuer(1024).jwk(),
    "private": FIRST.jwk(d="AQAB"),
    "another curve": KINDS["ES256"]().jwk(crv="P-384"),
    "no point of the curve": KINDS["ES256"]().jwk(x="AAAA"),
    "empty": {},
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_keys_that_are_not_for_us(kind: str) -> None:
    """Entries that cannot be used are left out; the others are used (RFC 7517 section 5)."""
    assert usable([UNUSABLE[kind], SECOND.jwk()]) == 1
    with pytest.raises(MalformedKeySet):
        usable([UNUSABLE[kind]])


def test_private_keys_are_told_apart() -> None:
    """An issuer that publishes its private key is told so: everyone can sign with it now."""
    private = jwt.get_algorithm_by_name("RS256").to_jwk(FIRST.private, as_dict=True)
    with pytest.raises(MalformedKeySet, match="private key"):
        usable([private])


def test_keys_without_name_or_algorithm() -> None:
    """``kid``, ``alg`` and ``use`` may be missing."""
    assert usable([FIRST.jwk(kid=..., alg=..., use=...)]) == 1
    assert usable([FIRST.jwk(kid=7)]) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["kty", "kid", "use", "alg", "n", "e", "x", "y", "crv", "key_ops"]),
        json_values | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "sig", "AQAB"]),
    )
)
def test_any_entry(entry: dict[str, Any]) -> None:
    """Whatever an entry is, it does no more than not being used."""
    assert usable([entry, SECOND.jwk()]) in {1, 2}


@example(b'{"keys":[{"kid":"\xff"}]}')
@example(b'{"keys":' + b"[" * 100_000)
@given(st.binary() | json_values.map(lambda value: json.dumps({"keys": value}).encode()))
def test_any_document(document: bytes) -> None:
    """Whatever is published, it is a set of keys or it is not."""
    with pytest.raises(MalformedKeySet):
        keys_of(document, DEFAULT_ALGORITHMS, TokenRules())


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/keys",
        "http://127.0.0.1.evil.example/keys",
        "http://10.0.0.1/keys",
        "https:///keys",
        "https://user:password@id.example/keys",
        "ftp://id.example/keys",
        "file:///etc/passwd",
        "//id.example",
        "id.example",
        "https://id.example:port/",
        "https://[::1/",
        "https://id.example:0/",
    ],
)
def test_unusable_url(url: str) -> None:
    """Keys come over https, or from this machine; anything else stops the start."""
    with pytest.raises(StartupError, match="AUTH_JWKS_URL"):
        Jwks(url, DEFAULT_ALGORITHMS, TokenRules())


@pytest.mark.parametrize(
    "url",
    ["https://id.example/keys", "http://127.0.0.1:80/", "http://[::1]/", "http://localhost/"],
)
def test_usable_url(url: str) -> None:
    """These are fine; nothing is fetched before a token comes."""
    authenticator(IdentitySettings(auth_mode="required", auth_jwks_url=url))


def test_security_item_22_mixed_algorithms() -> None:
    """A list that is not for public keys alone stops the start."""
    for algorithms in (("HS256",), ("RS256", "HS256"), ()):
        with pytest.raises(StartupError, match="AUTH_JWT_ALGORITHMS"):
            Jwks("https://id.example/keys", algorithms, TokenRules())
