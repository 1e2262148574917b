"""What an upload claims to be, and whether its name and its bytes bear that out.

A claim comes from the kind that was asked for, from the declared type, and from the extension
of the name; each must hold. What claims nothing that can be told from bytes is taken as it is.
Knows nothing of HTTP or files.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from services.ingest.creation import Creation
from services.ingest.errors import ContentMismatch, UnsupportedMediaType
from services.ingest.signatures import Verdict, judge
from shared.sidecar import Sidecar

__all__ = ["EXTENSIONS", "Inspection", "claims_of", "extension_of", "kind_of"]

_ISO: Final = frozenset({"iso-media"})
_MATROSKA: Final = frozenset({"matroska"})
_OGG: Final = frozenset({"ogg"})
_OGG_VIDEO: Final = frozenset({"ogg-video"})
_ASF: Final = frozenset({"asf"})
_CSV: Final = frozenset({"csv"})
_VIDEO: Final = frozenset({"iso-media", "matroska", "avi", "ogg-video"})

_BY_EXTENSION: Final = {
    **dict.fromkeys(("mp4", "m4v", "mov", "qt", "3gp", "3g2"), _ISO),
    **dict.fromkeys(("mkv", "webm"), _MATROSKA),
    **dict.fromkeys(("avi",), frozenset({"avi"})),
    **dict.fromkeys(("ogg",), _OGG),
    **dict.fromkeys(("ogv",), _OGG_VIDEO),
    **dict.fromkeys(("wmv", "asf"), _ASF),
    **dict.fromkeys(("csv", "tsv"), _CSV),
}
_BY_TYPE: Final = {
    **dict.fromkeys(("video/mp4", "video/quicktime", "video/x-m4v", "video/3gpp"), _ISO),
    **dict.fromkeys(("video/x-matroska", "video/matroska", "video/webm"), _MATROSKA),
    **dict.fromkeys(("video/x-msvideo", "video/avi", "video/vnd.avi"), frozenset({"avi"})),
    **dict.fromkeys(("video/ogg",), _OGG_VIDEO),
    **dict.fromkeys(("audio/ogg", "application/ogg"), _OGG),
    **dict.fromkeys(("video/x-ms-wmv", "video/x-ms-asf"), _ASF),
    **dict.fromkeys(("text/csv", "text/tab-separated-values"), _CSV),
}
_BY_KIND: Final = {"video": _VIDEO, "csv": _CSV}

EXTENSIONS: Final = {
    "video": frozenset({"mp4", "m4v", "mov", "qt", "avi", "mkv", "webm", "ogg", "ogv"}),
    "csv": frozenset({"csv", "tsv", "txt"}),
}
"""What a name may end in when the upload is said to be of that kind (seed document 002)."""


def extension_of(filename: str) -> str:
    """Return what follows the last dot, in lower case; empty if there is none.

    Dots and spaces at the end do not count: Windows drops them from a name.
    """
    name = filename.replace("\\", "/").rpartition("/")[2].rstrip(". ")
    return name.rpartition(".")[2].lower() if "." in name else ""


def claims_of(kind: str, content_type: str, filename: str) -> set[frozenset[str]]:
    """Return the sets of families that the content must have one of, each of them."""
    declared = content_type.partition(";")[0].strip().lower()
    claims = (
        _BY_KIND.get(kind),
        _BY_TYPE.get(declared),
        _BY_EXTENSION.get(extension_of(filename)),
    )
    return {one for one in claims if one is not None}


def kind_of(content_type: str, filename: str) -> str:
    """Return what a file is to be treated as, if nobody asked for a kind."""
    declared = content_type.partition(";")[0].strip().lower()
    claim = _BY_TYPE.get(declared) or _BY_EXTENSION.get(extension_of(filename))
    if claim is None or not claim <= _VIDEO | _CSV:
        return "file"
    return "csv" if claim == _CSV else "video"


class Inspection:
    """The rules of this deployment.

    Args:
        allowed: Extensions that names may have; none is all.
        denied: Extensions that names may not have.

    """

    def __init__(self, allowed: Collection[str] = (), denied: Collection[str] = ()) -> None:
        self._allowed: Final = frozenset(one.lower().lstrip(".") for one in allowed)
        self._denied: Final = frozenset(one.lower().lstrip(".") for one in denied)

    def check_name(self, creation: Creation) -> None:
        """Refuse an upload for its name, before anything is opened.

        The pieces of a file to be joined have no say: their whole is checked. A video or a
        table without an extension is judged by its content alone.

        Raises:
            UnsupportedMediaType: The extension is denied, or not among the allowed ones, or
                not one of the kind.

        """
        if creation.is_partial:
            return
        extension = extension_of(creation.filename)
        if extension in self._denied:
            raise UnsupportedMediaType(f"Files named .{extension} are not accepted.")
        own = EXTENSIONS.get(creation.kind)
        if not extension and own is not None:
            return
        if self._allowed and extension not in self._allowed:
            raise UnsupportedMediaType("Files of this extension are not accepted.")
        if own is not None and extension not in own:
            raise UnsupportedMediaType(f"A {creation.kind} file is not named .{extension}.")

    def claims(self, sidecar: Sidecar) -> set[frozenset[str]]:
        """Return what an upload claims to be; see ``claims_of``. A piece claims nothing."""
        facts = sidecar.facts
        if sidecar.is_partial:
            return set()
        return claims_of(facts.kind, facts.content_type, facts.filename)

    def check_start(self, sidecar: Sidecar, head: bytes, complete: bool) -> bool:
        """Judge an upload by its first bytes; return whether that was decided.

        Args:
            sidecar: Of the upload.
            head: Its bytes from the first one on; more than ``signatures.HEAD`` are of no use.
            complete: There are no more bytes.

        Raises:
            ContentMismatch: It is not what it claims to be, whatever follows.

        """
        return self._check_claims(self.claims(sidecar), head, complete=complete)

    def judge(self, subject: Creation | Sidecar, head: bytes, *, complete: bool) -> bool:
        """Judge a file by its first bytes before its upload takes them; see ``check_start``.

        Args:
            subject: The upload, or what is to open it.
            head: Its bytes from the first one on.
            complete: There are no more bytes.

        Raises:
            UnsupportedMediaType: Files of that name are not accepted.
            ContentMismatch: It is not what it claims to be, whatever follows.

        """
        if isinstance(subject, Sidecar):
            return self.check_start(subject, head, complete=complete)
        self.check_name(subject)
        claims = claims_of(subject.kind, subject.content_type, subject.filename)
        return self._check_claims(claims, head, complete=complete)

    def _check_claims(
        self, claims: Collection[frozenset[str]], head: bytes, *, complete: bool
    ) -> bool:
        """Judge by first bytes what claims so much; see ``check_start``."""
        verdicts = {judge(one, head, complete=complete) for one in claims}
        if Verdict.MISMATCH in verdicts:
            raise ContentMismatch("The content is not what its name, type or kind says.")
        return Verdict.MORE not in verdicts
