"""Structured field values (RFC 9651), read strictly: what breaks the grammar has no value.

Only what the headers of resumable uploads (RFC 9530 digests included) need: Items and
Dictionaries. Parameters are read, since a broken one spoils the field, and dropped (item 109).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final, NewType, TypeAlias

__all__ = ["BareItem", "NotStructured", "Token", "parse_dictionary", "parse_item"]

Token = NewType("Token", str)
"""A word without quotes, such as ``gzip``."""

BareItem: TypeAlias = int | float | str | bytes | bool

_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]*)?")
_INTEGER_DIGITS: Final = 15
_DECIMAL_DIGITS: Final = 12
_FRACTION_DIGITS: Final = 3
_STRING: Final = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_TOKEN: Final = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*")
_BYTES: Final = re.compile(r":([A-Za-z0-9+/]*=*):")
_BOOLEAN: Final = re.compile(r"\?([01])")
_DATE: Final = re.compile(r"@(-?[0-9]{1,15})(?![0-9.])")
_DISPLAY: Final = re.compile(r'%"((?:[\x20\x21\x23\x24\x26-\x7e]|%[0-9a-f]{2})*)"')
_KEY: Final = re.compile(r"[a-z*][a-z0-9_.*-]*")
_OWS: Final = " \t"


class NotStructured(ValueError):
    """The text is not what the header's definition asks for; act as if it were not there."""


def parse_item(text: str) -> BareItem:
    """Return the value of an Item (RFC 9651 section 4.2.3), its parameters dropped.

    Dates come as integers of their own kind and are of no use here, so they are refused like
    anything else that no header of resumable uploads may hold; display strings too.

    Raises:
        NotStructured: It is no Item.

    """
    reader = _Reader(text.strip(" "))
    value = reader.item()
    if not reader.at_end():
        raise NotStructured("something follows the item")
    if value is None:
        raise NotStructured("a type without a meaning here")
    return value


def parse_dictionary(text: str) -> Mapping[str, BareItem | None]:
    """Return the members of a Dictionary (section 4.2.2); the last of a doubled key counts.

    Inner lists, dates and display strings are ``None``: no key here means one.

    Raises:
        NotStructured: It is no Dictionary. All of it is to be ignored then.

    """
    reader = _Reader(text.strip(" "))
    members: dict[str, BareItem | None] = {}
    while not reader.at_end():
        key = reader.key()
        members.pop(key, None)
        members[key] = reader.member()
        reader.skip(_OWS)
        if reader.at_end():
            return members
        reader.expect(",")
        reader.skip(_OWS)
        if reader.at_end():
            raise NotStructured("a comma at the end")
    return members


class _Reader:
    """The text, and how far it is read."""

    def __init__(self, text: str) -> None:
        self._text: Final = text
        self._at = 0

    def at_end(self) -> bool:
        return self._at == len(self._text)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise NotStructured(f"unexpected text at {self._at}")
        self._at = found.end()
        return found

    def skip(self, characters: str) -> None:
        while (one := self._peek()) and one in characters:
            self._at += 1

    def expect(self, character: str) -> None:
        if self._peek() != character:
            raise NotStructured(f"no {character!r} at {self._at}")
        self._at += 1

    def key(self) -> str:
        return self._take(_KEY)[0]

    def member(self) -> BareItem | None:
        if self._peek() != "=":
            self._parameters()
            return True
        self._at += 1
        if self._peek() == "(":
            self._inner_list()
            return None
        return self.item()

    def item(self) -> BareItem | None:
        value = self._bare_item()
        self._parameters()
        return value

    def _inner_list(self) -> None:
        self.expect("(")
        while True:
            self.skip(" ")
            if self._peek() == ")":
                self._at += 1
                self._parameters()
                return
            self.item()
            if self._peek() not in {" ", ")"}:
                raise NotStructured("an inner list without its end")

    def _parameters(self) -> None:
        while self._peek() == ";":
            self._at += 1
            self.skip(" ")
            self.key()
            if self._peek() == "=":
                self._at += 1
                self._bare_item()

    def _bare_item(self) -> BareItem | None:
        first = self._peek()
        if first == "?":
            return self._take(_BOOLEAN)[1] == "1"
        if first == '"':
            return re.sub(r"\\(.)", r"\1", self._take(_STRING)[1])
        if first == ":":
            return _decoded(self._take(_BYTES)[1])
        if first == "@":
            self._take(_DATE)
            return None
        if first == "%":
            _check_text(self._take(_DISPLAY)[1])
            return None
        if first in set("-0123456789"):
            return _number(self._take(_NUMBER)[0])
        return Token(self._take(_TOKEN)[0])


def _number(text: str) -> int | float:
    whole, point, fraction = text.removeprefix("-").partition(".")
    if not point:
        if len(whole) > _INTEGER_DIGITS:
            raise NotStructured("too many digits")
        return int(text)
    if len(whole) > _DECIMAL_DIGITS or not 1 <= len(fraction) <= _FRACTION_DIGITS:
        raise NotStructured("too many digits, or none after the point")
    return float(text)


def _decoded(text: str) -> bytes:
    try:  # padding may be left out (section 4.2.7)
        bare = text.rstrip("=")
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except binascii.Error as exc:
        raise NotStructured("no Base64") from exc


def _check_text(text: str) -> None:
    """Check that a display string is UTF-8 (section 4.2.10)."""
    raw = re.sub(rb"%(..)", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    try:
        raw.decode()
    except UnicodeDecodeError as exc:
        raise NotStructured("no UTF-8") from exc
