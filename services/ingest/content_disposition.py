"""The file name that a request offers in ``Content-Disposition`` (RFC 6266, RFC 8187).

The name is a claim: whoever shows it or makes a header or a path of it cleans it first.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

__all__ = ["offered_name"]

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE: Final = re.compile(rf"\s*{_WORD}\s*")
_PARAMETER: Final = re.compile(
    rf';\s*({_WORD})\s*=\s*("(?:[^"\\]|\\.)*"|{_WORD})\s*', re.DOTALL
)
_EXTENDED: Final = re.compile(
    r"(?i:utf-8)'[A-Za-z0-9-]*'((?:[!#$&+.^_`|~0-9A-Za-z-]|%[0-9A-Fa-f]{2})*)"
)


def offered_name(header: str) -> str:
    """Return the name, control characters dropped; empty if there is none to be read.

    ``filename*`` wins over ``filename`` (RFC 6266 section 4.3). A header that breaks the
    grammar, or bytes that are no UTF-8, offer no name: it is never worth a refusal.
    """
    start = _TYPE.match(header)
    at = start.end() if start else -1
    found: dict[str, str] = {}
    while 0 <= at < len(header):
        one = _PARAMETER.match(header, at)
        if one is None or one[1].lower() in found:
            return ""
        found[one[1].lower()], at = one[2], one.end()
    return _visible(_extended(found.get("filename*", "")) or _plain(found.get("filename", "")))


def _extended(value: str) -> str:
    one = _EXTENDED.fullmatch(value)
    if one is None:
        return ""
    return unquote_to_bytes(one[1]).decode(errors="ignore")


def _plain(value: str) -> str:
    if value.startswith('"'):
        value = re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
    # The HTTP parser hands bytes that are no UTF-8 over as lone surrogates.
    return value.encode(errors="ignore").decode()


def _visible(name: str) -> str:
    return "".join(one for one in name if one.isprintable()).strip()
