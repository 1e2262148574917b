"""A tus client that does what a test tells it, right or wrong."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from services.ingest.location import COLLECTION
from shared.sidecar import new_id
from tests.ingest.wire import Answer, Connection, ask, head_of
from tests.processes import wait_until

__all__ = [
    "CHUNK",
    "TUS",
    "Tus",
    "created",
    "id_of",
    "metadata",
    "path_of",
    "unknown",
    "wait_for_offset",
]

TUS: Final = {"Tus-Resumable": "1.0.0"}
CHUNK: Final = {**TUS, "Content-Type": "application/offset+octet-stream"}


def metadata(**pairs: str | bytes) -> str:
    """Return an ``Upload-Metadata`` value."""
    plain = ((k, v.encode() if isinstance(v, str) else v) for k, v in pairs.items())
    return ",".join(f"{key} {base64.b64encode(value).decode()}" for key, value in plain)


class Tus:
    """Speaks to one ingest process; each request has a connection of its own.

    Args:
        port: Of the public listener.
        headers: Sent with every request, such as credentials.

    """

    def __init__(self, port: int, headers: Mapping[str, str] | None = None) -> None:
        self.port: Final = port
        self._extra: Final = dict(headers or {})

    def ask(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        """Send exactly this, and return the answer."""
        return ask(self.port, method, target, {**self._extra, **headers}, body)

    def post(self, headers: Mapping[str, str] = {}, body: bytes = b"") -> Answer:
        """POST to the collection, in version 1.0.0."""
        return self.ask("POST", COLLECTION, {**TUS, **headers}, body)

    def create(
        self, length: int | None, headers: Mapping[str, str] = {}, body: bytes = b""
    ) -> str:
        """Open an upload (``None`` defers its length) and return its path."""
        size = {"Upload-Defer-Length": "1"}
        if length is not None:
            size = {"Upload-Length": str(length)}
        return created(self.post({**size, **headers}, body))

    def extensions(self) -> list[str]:
        """Return the extensions that are announced."""
        return self.ask("OPTIONS", COLLECTION, {}).headers["Tus-Extension"].split(",")

    def head(self, path: str) -> Answer:
        """HEAD an upload."""
        return self.ask("HEAD", path, TUS)

    def offset(self, path: str) -> int:
        """Return how far an upload is, as HEAD says."""
        answer = self.head(path)
        assert answer.status == 200, answer
        return int(answer.headers["Upload-Offset"])

    def patch(
        self, path: str, offset: int | str, body: bytes = b"", headers: Mapping[str, str] = {}
    ) -> Answer:
        """PATCH an upload."""
        return self.ask("PATCH", path, {**CHUNK, "Upload-Offset": str(offset), **headers}, body)

    def delete(self, path: str) -> Answer:
        """DELETE an upload."""
        return self.ask("DELETE", path, TUS)

    def begin_patch(
        self, path: str, offset: int, length: int | None, body: bytes = b""
    ) -> Connection:
        """Send the head of a PATCH and the beginning of its body; the caller goes on.

        Args:
            path: Of the upload.
            offset: ``Upload-Offset``.
            length: ``Content-Length``; ``None`` makes the body chunked, to be framed by hand.
            body: Sent at once, as it is.

        """
        framing = {"Transfer-Encoding": "chunked"}
        if length is not None:
            framing = {"Content-Length": str(length)}
        headers = {**self._extra, **CHUNK, "Upload-Offset": str(offset), **framing}
        one = Connection(self.port)
        one.send(head_of("PATCH", path, headers), body)
        return one

    def many_patches(self, path: str, pieces: list[bytes]) -> int:
        """Send the pieces one after another on one connection; return the last offset."""
        offset = 0
        with Connection(self.port) as one:
            for piece in pieces:
                headers = {**self._extra, **CHUNK, "Upload-Offset": str(offset)}
                one.request("PATCH", path, headers, piece)
                answer = one.read()
                assert answer.status == 204, answer
                offset = int(answer.headers["Upload-Offset"])
        return offset


def wait_for_offset(tus: Tus, path: str, offset: int) -> None:
    """Wait, without disturbing the writer, until so many bytes are there."""

    def there() -> bool:
        answer = tus.ask("GET", path, {})
        assert answer.status in {204, 307}, answer
        return int(answer.headers["Upload-Offset"]) >= offset

    wait_until(there, f"{offset} bytes are there", limit_s=20)


def created(answer: Answer) -> str:
    """Return the path of the upload that was created."""
    assert answer.status == 201, answer
    return path_of(answer)


def path_of(answer: Answer) -> str:
    """Return the path of the upload that an answer names."""
    return urlsplit(answer.headers["Location"]).path


def id_of(path: str) -> str:
    """Return the id in an upload's path."""
    return path.rpartition("/")[2]


def unknown() -> str:
    """Return the path of an upload that is not there."""
    return f"{COLLECTION}/{new_id()}"
