"""What a client says of its file, name and type, made fit to be kept, judged and shown.

Both are words only: no path is built from a name, and content decides what a file is. But what
cannot be seen in a name must not hide its extension from the rules that go by it, and what is
no text cannot be written down. Pure.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

__all__ = ["clean_filename", "clean_type"]

_MAX_NAME_BYTES: Final = 255
_UNWANTED: Final = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that no name needs: controls, text direction, halves, line ends."""

_MAX_TYPE: Final = 255
_NAME: Final = r"[A-Za-z0-9!#$&^_.+-]{1,127}"  # RFC 6838 section 4.2
_MEDIA_TYPE: Final = re.compile(rf"{_NAME}/{_NAME}[ \t]*(?:;[\t -~]*)?")


def clean_filename(given: str) -> str:
    """Return the name of a file as it may be stored and shown (security item 3).

    Some clients send a whole path: its last part is the name. What could change how a page or
    a log reads goes. At most 255 bytes of UTF-8 stay, from the front, and the extension.
    """
    text = unicodedata.normalize("NFC", given.encode(errors="replace").decode())
    text = re.split(r"[/\\]", text)[-1]
    text = "".join(one for one in text if unicodedata.category(one) not in _UNWANTED)
    text = text.strip().lstrip(".- ")
    stem, dot, extension = text.rpartition(".")
    if len(text.encode()) <= _MAX_NAME_BYTES:
        return text
    tail = f"{dot}{extension}" if stem and len(extension.encode()) <= 32 else ""
    room = _MAX_NAME_BYTES - len(tail.encode())
    return (stem if tail else text).encode()[:room].decode(errors="ignore") + tail


def clean_type(given: str) -> str:
    """Return a media type as it may be stored (security item 5); empty if it is none."""
    text = given.strip()
    return text if len(text) <= _MAX_TYPE and _MEDIA_TYPE.fullmatch(text) else ""
