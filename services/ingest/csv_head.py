"""Whether the beginning of a file reads as CSV, and how; without I/O.

CSV has no signature. What is refused: bytes that are no text in any encoding that people save
tables in, text that is plainly another format, and text whose records do not agree on how many
fields they have. A single column is a table too.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from typing import Final

import msgspec

__all__ = ["CsvHead", "read_head"]

_DELIMITERS: Final = ",;\t|"
_CONTROLS: Final = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
"""No table holds them; vertical tab aside, they make up a tenth of random bytes."""

_OTHERS: Final = re.compile(
    r"\s*(?:<(?:!|\?|html|svg|script|head|body)|%PDF-|\{\\rtf|#!|MZ|PK\x03\x04|GIF8|BEGIN:V)",
    re.IGNORECASE,
)
"""Text, or what decodes as such, that is another format."""

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class CsvHead(msgspec.Struct, frozen=True, kw_only=True):
    """How the beginning of a file reads."""

    is_csv: bool
    """As far as can be told from what is there."""
    encoding: str = ""
    delimiter: str = ""
    """Empty: one column."""


_NO_CSV: Final = CsvHead(is_csv=False)


def read_head(head: bytes, *, complete: bool) -> CsvHead:
    """Return how the first bytes of a file read.

    Args:
        head: The bytes, which may end in the middle of a character or a record.
        complete: There will be no more to judge by. Until then only text that cannot become
            CSV any more is refused.

    """
    encoding, text = _decoded(head)
    if _CONTROLS.search(text) or _OTHERS.match(text):
        return _NO_CSV
    if not complete:
        return CsvHead(is_csv=True, encoding=encoding)
    if not text.strip():
        return _NO_CSV
    delimiter = _delimiter(text)
    if delimiter is None:
        return _NO_CSV
    return CsvHead(is_csv=True, encoding=encoding, delimiter=delimiter)


def _decoded(head: bytes) -> tuple[str, str]:
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding, _text(head, encoding, "replace")
    try:
        return "utf-8", _text(head, "utf-8", "strict")
    except UnicodeDecodeError:
        return "latin-1", head.decode("latin-1")  # any byte is a letter there


def _text(head: bytes, encoding: str, errors: str) -> str:
    """Decode without what is cut off at the end."""
    return codecs.getincrementaldecoder(encoding)(errors).decode(head)


def _delimiter(text: str) -> str | None:
    """Return what separates the fields of most records; ``None``: they agree on nothing.

    Ragged lines, such as a title above the table, are forgiven while they are the fewer.
    """
    best, best_share = None, 0.0
    for candidate in _DELIMITERS:
        widths = _widths(text, candidate)
        width, count = widths.most_common(1)[0] if widths else (0, 0)
        share = count / max(widths.total(), 1)
        if width > 1 and share >= 0.5 and share > best_share:
            best, best_share = candidate, share
    if best is not None:
        return best
    lines = [line for line in text.splitlines() if line.strip()]
    plain = sum(not any(one in line for one in _DELIMITERS) for line in lines)
    return "" if 2 * plain >= len(lines) else None


def _widths(text: str, delimiter: str) -> Counter[int]:
    """Count the records of a text by how many fields they have; the last may be cut off."""
    widths: Counter[int] = Counter()
    rows = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    last = 0
    try:
        for row in rows:
            if last:
                widths[last] += 1
            last = len(row)
    except csv.Error:  # a field beyond the module's limit, or a bare carriage return
        return widths
    if not widths and last:
        widths[last] += 1
    return widths
