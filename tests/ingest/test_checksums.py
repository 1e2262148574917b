"""What a request promises of its body, and whether the body keeps it."""

from __future__ import annotations

import base64
import hashlib
import zlib
from typing import Final

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from services.ingest.checksums import TUS_ALGORITHMS, Check, Checking, tus_checks
from services.ingest.errors import ChecksumMismatch
from shared.errors import InvalidRequest

# Of "123456789", from the definitions of the algorithms.
KNOWN: Final = {
    "crc32": "cbf43926",
    "md5": "25f9e794323b453885f5181f1b624d0b",
    "sha1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    "sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
    "sha512": (
        "d9e6762dd1c8eaf6d61b3c6192fc408d4d6d5f1176d0c29169bc24e71c3f274a"
        "d27fcd5811b313d681f7e55ec02d73d499c95455b6b5bb503acf574fba8ffe85"
    ),
}


@pytest.mark.parametrize("algorithm", KNOWN)
def test_known_values(algorithm: str) -> None:
    """An algorithm would be another one than its name says."""
    checking = Checking([Check(algorithm, bytes.fromhex(KNOWN[algorithm]))])
    checking.update([b"1234", b"", b"56789"])
    checking.verify()


@given(st.lists(st.binary(max_size=50)), st.sampled_from(TUS_ALGORITHMS), st.integers(0, 10**6))
def test_only_the_right_bytes_match(pieces: list[bytes], algorithm: str, at: int) -> None:
    """The way in which a body is cut would change its checksum, or a wrong bit would not."""
    body = b"".join(pieces)
    digest = {
        "crc32": lambda: zlib.crc32(body).to_bytes(4, "big"),
        "blake3": lambda: blake3(body).digest(),
    }.get(algorithm, lambda: hashlib.new(algorithm, body).digest())()
    right = Checking([Check(algorithm, digest)])
    right.update(pieces)
    right.verify()
    wrong = Checking([Check(algorithm, digest)])
    place = at % (len(body) + 1)
    wrong.update([body[:place], b"!", body[place:]])
    with pytest.raises(ChecksumMismatch):
        wrong.verify()


def test_all_checks_must_hold() -> None:
    """Of several checksums only one would be looked at."""
    good = Check("sha1", hashlib.sha1(b"x").digest())
    for checks in ([good, Check("md5", b"")], [Check("md5", b""), good]):
        checking = Checking(checks)
        checking.update([b"x"])
        with pytest.raises(ChecksumMismatch):
            checking.verify()


@given(st.sampled_from(TUS_ALGORITHMS), st.binary(min_size=1, max_size=64))
def test_what_is_read_is_what_was_written(algorithm: str, digest: bytes) -> None:
    """A good header would be refused, or read as another digest."""
    value = f"{algorithm} {base64.b64encode(digest).decode()}"
    assert tus_checks(CIMultiDict({"Upload-Checksum": value})) == (Check(algorithm, digest),)


@given(st.text(max_size=40))
def test_any_other_text_is_refused(value: str) -> None:
    """Some text would raise what nobody catches, or count as a checksum."""
    try:
        [check] = tus_checks(CIMultiDict({"Upload-Checksum": value}))
    except InvalidRequest:
        return
    assert value == f"{check.algorithm} {base64.b64encode(check.expected).decode()}"


def test_no_header_is_no_check() -> None:
    """A request without a checksum would be kept back as if it had one."""
    assert tus_checks(CIMultiDict({"Trailer": "X-Other"})) == ()


def test_an_unknown_algorithm_is_told_the_known_ones() -> None:
    """A client could not find out which algorithm it may use instead."""
    with pytest.raises(InvalidRequest) as refused:
        tus_checks(CIMultiDict({"Upload-Checksum": "sha512 qvTG"}))
    assert refused.value.headers["Tus-Checksum-Algorithm"] == ",".join(TUS_ALGORITHMS)
