"""Tokens of links say what was signed, or nothing."""

from __future__ import annotations

import base64
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.storage.link_tokens import LONGEST_NAME, BadToken, LinkTerms, LinkTokens
from shared.sidecar import new_id

KEY: Final = b"k" * 32
OLD_KEY: Final = b"o" * 32
FILE: Final = "3f0f4a4e-63a7-4b0b-9d0d-0f6f1f6f2b11"
TERMS: Final = LinkTerms(generation=3, expires_at=1_800_000_000, filename="résumé.pdf")
TOKENS: Final = LinkTokens([KEY])


def refuses(tokens: LinkTokens, file_id: str, token: str) -> bool:
    """Tell whether a token is none for a file."""
    try:
        tokens.read(file_id, token)
    except BadToken:
        return True
    return False


def encoded(content: bytes) -> str:
    """Return bytes as a token spells them."""
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def decoded(token: str) -> bytes:
    """Return the bytes of a token."""
    return base64.urlsafe_b64decode(token + "==")


names = st.text(max_size=60).filter(lambda text: text.isprintable()) | st.just("")


@given(
    generation=st.integers(0, 2**32 - 1),
    expires_at=st.integers(0, 2**63),
    single_use=st.booleans(),
    filename=names,
)
def test_read_what_was_made(
    generation: int, expires_at: int, single_use: bool, filename: str
) -> None:
    """Whatever was signed is read again, and the token fits a URL as it is."""
    terms = LinkTerms(
        generation=generation, expires_at=expires_at, single_use=single_use, filename=filename
    )
    token = TOKENS.make(FILE, terms)
    found = TOKENS.read(FILE, token)
    assert replace(found, nonce=b"") == terms
    assert len(found.nonce) == 12
    assert token.replace("-", "").replace("_", "").isalnum()


def test_longest_name() -> None:
    """A token with the longest name is not taken for an oversized one."""
    terms = replace(TERMS, filename="é" * (LONGEST_NAME // 2) + "x")
    assert TOKENS.read(FILE, TOKENS.make(FILE, terms)).filename == terms.filename


def test_no_two_are_alike() -> None:
    """Links of the same terms are told apart, or one use would end the other."""
    made = {TOKENS.read(FILE, TOKENS.make(FILE, TERMS)).nonce for _ in range(50)}
    assert len(made) == 50


@pytest.mark.parametrize("file_id", [new_id(), FILE.upper(), "", FILE[:-1], f"{FILE}\0"])
def test_another_file(file_id: str) -> None:
    """A token is good for one file."""
    assert refuses(TOKENS, file_id, TOKENS.make(FILE, TERMS))


@given(position=st.integers(0), bit=st.integers(0, 7))
def test_any_bit_that_is_changed(position: int, bit: int) -> None:
    """Expiry, options, name, nonce, generation and signature cannot be changed."""
    content = bytearray(decoded(TOKENS.make(FILE, TERMS)))
    content[position % len(content)] ^= 1 << bit
    assert refuses(TOKENS, FILE, encoded(bytes(content)))


@given(st.data())
def test_truncated(data: st.DataObject) -> None:
    """No part of a token is good."""
    token = TOKENS.make(FILE, TERMS)
    end = data.draw(st.integers(0, len(token) - 1))
    assert refuses(TOKENS, FILE, token[:end])
    assert refuses(TOKENS, FILE, token[len(token) - end :])


@given(st.text(max_size=900) | st.binary(max_size=400).map(encoded))
def test_nonsense(token: str) -> None:
    """Whatever else is sent is refused as such, without another error."""
    assert refuses(TOKENS, FILE, token)


def test_oversized() -> None:
    """Nobody makes the server decode megabytes."""
    assert refuses(TOKENS, FILE, TOKENS.make(FILE, TERMS) + "A" * 10_000_000)


def test_one_spelling() -> None:
    """Padding, other alphabets and loose last bits do not make other tokens of the same."""
    token = TOKENS.make(FILE, replace(TERMS, filename="ab"))
    while len(decoded(token)) % 3 == 0:
        token = TOKENS.make(FILE, replace(TERMS, filename="abc"))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    loose = token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]
    assert decoded(loose) == decoded(token), "the same bytes, spelled otherwise"
    for other in (loose, f"{token}=", f" {token}", f"{token}\n", token.replace("-", "+") + "+"):
        assert refuses(TOKENS, FILE, other)


def test_bytes_moved_between_parts() -> None:
    """What moves from the name into the id, or back, is not what was signed."""
    token = decoded(TOKENS.make(FILE, replace(TERMS, filename="a")))
    moved = token[:30] + token[31:]
    assert refuses(TOKENS, f"{FILE}a", encoded(moved))
    assert refuses(TOKENS, FILE, encoded(moved))


def test_another_secret() -> None:
    """A token of somebody else's making is not good."""
    assert refuses(TOKENS, FILE, LinkTokens([OLD_KEY]).make(FILE, TERMS))


def test_rotation() -> None:
    """The new secret signs, the old one is still good, and once it is gone no more."""
    old, both, new = LinkTokens([OLD_KEY]), LinkTokens([KEY, OLD_KEY]), LinkTokens([KEY])
    made_before, made_now = old.make(FILE, TERMS), both.make(FILE, TERMS)
    assert both.read(FILE, made_before).generation == TERMS.generation
    assert both.read(FILE, made_now) == new.read(FILE, made_now)
    assert refuses(new, FILE, made_before)
    assert refuses(old, FILE, made_now)
