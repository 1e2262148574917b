"""Digests of whole files, as RFC 9530 has them asked for and told."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.repr_digest import repr_digest

CONTENT = b"some bytes"
BOTH = {one: hashlib.new(one, CONTENT).hexdigest() for one in ("sha256", "sha512")}
SHA256 = f"sha-256=:{base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}:"
SHA512 = f"sha-512=:{base64.b64encode(hashlib.sha512(CONTENT).digest()).decode()}:"


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (None, SHA256),
        ("", SHA256),
        ("sha-256=10", SHA256),
        ("sha-512=3", SHA512),
        ("sha-512=3, sha-256=10", SHA256),
        ("sha-512=9, sha-256=0", SHA512),
        ("sha-256=0", None),
        ("sha-256=0, sha-512=0", None),
        ("sha-256=1\t, sha-512=2;why=so;x", SHA512),
        ("sha-512=2, sha-512=0", SHA256),
        ("md5=10", SHA256),
        ("unixsum=0", SHA256),
        ("sha-512=11", SHA256),
        ("sha-512=-1", SHA256),
        ("sha-512=1.5", SHA256),
        ("sha-512", SHA256),
        ("sha-512=?1", SHA256),
        ("sha-512=3,", SHA256),
        ("SHA-512=3", SHA256),
        (":::", SHA256),
    ],
)
def test_preferences(wish: str | None, told: str | None) -> None:
    """The best of what is known and wanted is told; a wish that breaks the rules is none."""
    assert repr_digest(BOTH, wish) == told


def test_what_is_not_known() -> None:
    """Nothing is hashed for a wish."""
    assert repr_digest({}, "sha-256=10") is None
    assert repr_digest({"sha256": BOTH["sha256"]}, "sha-512=10, sha-256=1") == SHA256
    assert repr_digest({"md5": "00"}, None) is None


@given(st.text(max_size=40))
def test_any_wish(wish: str) -> None:
    """Whatever is wished, the answer is one of the digests or none."""
    assert repr_digest(BOTH, wish) in {SHA256, SHA512, None}
