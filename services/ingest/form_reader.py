"""A form as it arrives (``multipart/form-data``, RFC 7578): small fields and a stream.

Nothing of the file is kept here. What a form may have is limited before it is read (security
item 15): parts, header bytes, bytes of a field. ``request.post()`` is not used: it collects
files, and it decodes what a part claims to be encoded in.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import unquote

import aiohttp
from aiohttp import BodyPartReader, ClientError, MultipartReader, hdrs, web
from aiohttp.helpers import parse_mimetype
from aiohttp.http_exceptions import HttpProcessingError

from services.ingest.errors import BodyStalled, UnsupportedMediaType
from services.ingest.form import FIELDS
from services.ingest.request_body import BodyCut, RequestBody
from shared.errors import InvalidRequest, PayloadTooLarge

__all__ = ["FilePart", "FormReader", "disposition"]

T = TypeVar("T")

FILE: Final = "file"
OVERHEAD: Final = 1024 * 1024
"""Most bytes of a form beside its file, in round numbers."""

_PIECE: Final = 64 * 1024
_MAX_PARTS: Final = 32
_MAX_HEADERS: Final = 8
_MAX_HEADER_BYTES: Final = 4096
_MAX_FIELD_BYTES: Final = 16 * 1024
_PLAIN: Final = {"", "binary", "8bit", "7bit"}

_PARAMETER: Final = re.compile(r';\s*([\w*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')
_ESCAPED: Final = re.compile(r'\\(["\\])|%(22|0D|0A)', re.IGNORECASE)
_EXTENDED: Final = re.compile(r"utf-8'[A-Za-z0-9-]*'(.*)", re.IGNORECASE)

_MALFORMED: Final = (ValueError, RuntimeError, HttpProcessingError, LookupError, AssertionError)
"""What aiohttp's reader raises for a form that is none."""

# aiohttp warns of each odd header that a client sends, in plain text between the log lines.
for _noise in (aiohttp.BadContentDispositionHeader, aiohttp.BadContentDispositionParam):
    warnings.filterwarnings("ignore", category=_noise)


def disposition(header: str) -> dict[str, str]:
    """Return the parameters of a part's ``Content-Disposition``, as clients really write it.

    Browsers write ``%22`` for a quote in a name and leave ``\\`` alone; older clients put a
    backslash before a quote; some add ``filename*`` (RFC 8187), though RFC 7578 says no.
    """
    found: dict[str, str] = {}
    for name, quoted, token in _PARAMETER.findall(header):
        text = _ESCAPED.sub(lambda one: one[1] or unquote(f"%{one[2]}"), quoted) or token
        found.setdefault(name.lower(), text)
    if extended := _EXTENDED.fullmatch(found.get("filename*", "")):
        found["filename"] = unquote(extended[1], errors="replace")
    return found


class FilePart:
    """The part that holds the file; a body that ``receive`` can take."""

    def __init__(self, part: BodyPartReader, filename: str, body: RequestBody) -> None:
        self.filename: Final = filename
        self.content_type: Final = part.headers.get(hdrs.CONTENT_TYPE, "")
        self._part: Final = part
        self._body: Final = body
        self._reading: asyncio.Future[bytes] | None = None
        self._see: Callable[[bytes], None] = lambda _: None
        self.length: Final[int | None] = None  # that of the form says nothing of its parts

    def watch(self, see: Callable[[bytes], None]) -> None:
        """Have each piece shown to ``see`` before it is handed out; what that raises is raised
        instead.
        """
        self._see = see

    async def read(self) -> bytes:
        """Return the next bytes of the file; ``b""`` at its end.

        May be cancelled: what was being read then comes with the next call. aiohttp's reader
        alone would lose its place.

        Raises:
            BodyCut: There are no more, and this is not the end.

        """
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._next())
        # Who is cancelled leaves it there, even if it is done by now: nobody has its bytes.
        piece = await asyncio.shield(self._reading)
        self._reading = None
        self._see(piece)
        return piece

    async def _next(self) -> bytes:
        try:
            while not self._part.at_eof():
                if piece := await self._part.read_chunk(_PIECE):
                    return piece
        except (OSError, ClientError, *_MALFORMED) as exc:
            raise BodyCut from exc
        return b""

    def buffered(self) -> bytes:
        """Return nothing: what arrived cannot be told from what follows the file."""
        return b""

    def is_broken(self) -> bool:
        """Tell whether the framing of the form broke, so that its end can never come."""
        return self._body.is_broken()

    async def close(self) -> None:
        """Give up a read that nobody waits for any more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                self._reading.exception()


class FormReader:
    """Reads one form: ``next_file``, then the file, then ``finish``.

    Args:
        request: Its body must not have been touched.
        idle_s: Longest silence, in seconds.
        max_file_size: In bytes; 0 is no limit.

    Raises:
        UnsupportedMediaType: The request is no form, or is compressed.
        InvalidRequest: The form has no boundary that could be used.
        PayloadTooLarge: Its length alone says that the file is too large.

    """

    def __init__(self, request: web.Request, *, idle_s: float, max_file_size: int) -> None:
        self.fields: Final[dict[str, str]] = {}
        """The fields that have come so far, as text."""
        self.length: Final = request.content_length
        """Bytes of the whole form, where the request tells."""
        self._idle_s: Final = idle_s
        self._body: Final = RequestBody(request)
        self._parts: Final = _reader_of(request)
        self._count = 0
        self._file: FilePart | None = None
        self.check_length(max_file_size)

    def check_length(self, most: int) -> None:
        """Refuse a form that is too long for any file of ``most`` bytes (0: no limit).

        Raises:
            PayloadTooLarge: It is.

        """
        if most and self.length is not None and self.length > most + OVERHEAD:
            raise PayloadTooLarge(f"The file may have at most {most} bytes here.")

    async def next_file(self) -> FilePart:
        """Read the fields that come before the file, and return the file.

        Raises:
            InvalidRequest: The form has no file, or is malformed.
            ApiError: As ``finish``.

        """
        await self._body.invite()
        self._file = await self._read_fields()
        if self._file is None:
            raise InvalidRequest("The form has no part named file.")
        return self._file

    async def finish(self) -> None:
        """Read the fields that come after the file.

        Raises:
            InvalidRequest: There is a second file, or the form is malformed.
            PayloadTooLarge: There are too many parts, or one of them is too long.
            UnsupportedMediaType: A part is encoded.
            BodyStalled: No byte came for too long.

        """
        if await self._read_fields() is not None:
            raise InvalidRequest("The form has more than one file.")

    async def close(self) -> None:
        """Let go of the file, wherever its reading ended."""
        if self._file is not None:
            await self._file.close()

    async def _read_fields(self) -> FilePart | None:
        """Read fields up to a file; return ``None`` at the end of the form."""
        while (part := await self._alive(self._parts.next())) is not None:
            self._count += 1
            if self._count > _MAX_PARTS:
                raise PayloadTooLarge(f"A form may have {_MAX_PARTS} parts.")
            if not isinstance(part, BodyPartReader):
                raise InvalidRequest("The parts of a form cannot have parts.")
            _check_plain(part.headers)
            said = disposition(part.headers.get(hdrs.CONTENT_DISPOSITION, ""))
            name = said.get("name", "")
            if not name:
                raise InvalidRequest("A part of the form has no name.")
            if name == FILE:
                return FilePart(part, said.get("filename", ""), self._body)
            if name in self.fields:
                raise InvalidRequest(f"{name} is given more than once.")
            text = await self._text_of(part)
            if name in FIELDS:
                self.fields[name] = text
        return None

    async def _text_of(self, part: BodyPartReader) -> str:
        content = bytearray()
        while not part.at_eof():
            content += await self._alive(part.read_chunk(_PIECE))
            if len(content) > _MAX_FIELD_BYTES:
                raise PayloadTooLarge(f"A field may have {_MAX_FIELD_BYTES} bytes.")
        try:
            return content.decode()
        except UnicodeDecodeError as exc:
            raise InvalidRequest("A field of the form is not UTF-8 text.") from exc

    async def _alive(self, reading: Awaitable[T]) -> T:
        """Wait for the form to go on.

        Raises:
            BodyStalled: It did not.
            InvalidRequest: It ended, or is malformed.

        """
        try:
            async with asyncio.timeout(self._idle_s):
                return await reading
        except TimeoutError as exc:
            raise BodyStalled("No byte came for too long.") from exc
        except (OSError, ClientError, *_MALFORMED) as exc:
            raise InvalidRequest("The form is malformed, or ended early.") from exc


def _reader_of(request: web.Request) -> MultipartReader:
    kind = parse_mimetype(request.headers.get(hdrs.CONTENT_TYPE, ""))
    if (kind.type, kind.subtype) != ("multipart", "form-data"):
        raise UnsupportedMediaType("Content-Type must be multipart/form-data.")
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Content-Encoding is not accepted.")
    try:
        return MultipartReader(
            request.headers,
            request.content,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
        )
    except (ValueError, AssertionError) as exc:  # it is missing, or longer than 70 characters
        raise InvalidRequest("The form's Content-Type has no valid boundary.") from exc


def _check_plain(headers: Mapping[str, str]) -> None:
    """Refuse a part that would have to be decoded: it could be larger than it looks."""
    transfer = headers.get(hdrs.CONTENT_TRANSFER_ENCODING, "").strip().lower()
    if transfer not in _PLAIN or hdrs.CONTENT_ENCODING in headers:
        raise UnsupportedMediaType("The parts of a form must not be encoded.")
