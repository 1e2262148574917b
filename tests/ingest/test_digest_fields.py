"""Digests that are declared or asked for (RFC 9530)."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.ingest.digest_fields import declared_digests, render_digests, wanted_digest
from services.ingest.errors import DigestUnreadable

TEXT = b"hello"
SHA256 = f"sha-256=:{base64.b64encode(hashlib.sha256(TEXT).digest()).decode()}:"
SHA512 = f"sha-512=:{base64.b64encode(hashlib.sha512(TEXT).digest()).decode()}:"


def declared(*lines: str) -> dict[str, str]:
    """Return what some lines of ``Repr-Digest`` declare."""
    headers = CIMultiDict(("Repr-Digest", line) for line in lines)
    return declared_digests(headers, "Repr-Digest")


def test_declared() -> None:
    """Known algorithms are read, from one line or several, and unknown ones passed over."""
    both = {
        "sha256": hashlib.sha256(TEXT).hexdigest(),
        "sha512": hashlib.sha512(TEXT).hexdigest(),
    }
    assert declared(f"{SHA256}, {SHA512}") == declared(SHA256, SHA512) == both
    assert declared(f"md5=:AAAA:, {SHA256}, x=?1") == {"sha256": both["sha256"]}
    assert declared("unixsum=5") == declared("") == declared() == {}


@pytest.mark.parametrize(
    "line",
    [
        *(
            "sha-256",
            "sha-256=?1",
            "sha-256=5",
            'sha-256="abc"',
            "sha-256=:AAAA:",
            "sha-256=::",
        ),
        *("sha-256=abc", SHA512.replace("512", "256"), SHA256[:-1], f"{SHA256},"),
        "SHA-256=::",
    ],
)
def test_unreadable(line: str) -> None:
    """A digest that nobody could check is refused, since its client relies on the check."""
    with pytest.raises(DigestUnreadable) as refused:
        declared(line)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("line", "algorithm"),
    [
        ("sha-256=10, sha-512=3", "sha256"),
        ("sha-256=1, sha-512=3", "sha512"),
        ("sha-256=5, sha-512=5", "sha512"),
        ("sha-256=1;q=2", "sha256"),
        ("sha-256=0", ""),
        ("sha-256=11", ""),
        ("sha-256=-1", ""),
        ("sha-256", ""),
        ("sha-256=1.0", ""),
        ("md5=10", ""),
        ("md5=10, sha-256=1", "sha256"),
        ("sha-256=1,", ""),
        ("", ""),
    ],
)
def test_wanted(line: str, algorithm: str) -> None:
    """The best known algorithm that is wanted is chosen; what cannot be read asks for none."""
    assert wanted_digest(CIMultiDict({"Want-Repr-Digest": line})) == algorithm


@given(st.binary())
def test_what_is_rendered_is_read(content: bytes) -> None:
    """A digest that is answered is one that could be declared."""
    made = {"sha256": hashlib.sha256(content).hexdigest()}
    answer = render_digests(made, "sha256")
    assert declared_digests(CIMultiDict(answer), "Repr-Digest") == made
    assert render_digests(made, "sha512") == render_digests(made, "") == {}
