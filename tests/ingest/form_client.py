"""A client of the upload by form that decides about every byte of its multipart bodies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.ingest.evidence import digest
from tests.ingest.wire import Answer, Connection, ask, head_of

__all__ = ["BOUNDARY", "Forms", "Reply", "body_of", "file_part", "text_part", "text_parts"]

BOUNDARY: Final = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
"""As a browser makes it."""


def text_part(name: str, value: object) -> bytes:
    """Return a part that holds a field."""
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def text_parts(fields: Mapping[str, object]) -> list[bytes]:
    """Return a part for each field that has a value."""
    return [text_part(name, text) for name, text in fields.items() if text is not None]


def file_part(content: bytes, *, filename: str = "file", kind: str = "x/y") -> bytes:
    """Return the part that holds the file."""
    head = (
        f'Content-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        f"Content-Type: {kind}\r\n\r\n"
    )
    return head.encode() + content


def body_of(parts: Sequence[bytes], boundary: str = BOUNDARY) -> bytes:
    """Return a multipart body."""
    line = b"--" + boundary.encode()
    return b"".join(b"%s\r\n%s\r\n" % (line, part) for part in parts) + line + b"--\r\n"


@dataclass(frozen=True)
class Reply:
    """An answer, and what its JSON says."""

    status: int
    body: dict[str, Any]
    answer: Answer = field(repr=False)

    @property
    def data(self) -> dict[str, Any]:
        """The state of the session."""
        assert self.body.get("success") is True, self.body
        found: dict[str, Any] = self.body["data"]
        return found

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.body["error_code"])


class Forms:
    """Requests to one ingest process."""

    def __init__(
        self, port: int, kind: str = "file", headers: Mapping[str, str] | None = None
    ) -> None:
        self.port: Final = port
        self.path: Final = f"/v1/upload/{kind}"
        self.headers: Final = dict(headers or {})

    def post(self, content: bytes, **fields: object) -> Reply:
        """Send a form: the fields, then the file; a field that is ``None`` is left out."""
        return self.post_parts([*text_parts(fields), file_part(content)])

    def post_parts(self, parts: Sequence[bytes]) -> Reply:
        """Send a form made of these parts."""
        return self.post_body(body_of(parts))

    def post_body(self, body: bytes, **headers: str) -> Reply:
        """Send a body as it is."""
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        given = {"Content-Type": kind} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self._ask("POST", self.path, given, body)

    def chunk(
        self, chunks: Sequence[bytes], index: int, session_id: str | None = None, **more: object
    ) -> Reply:
        """Send one of the chunks of a file, as the client of seed document 002 does."""
        return self.post(
            chunks[index],
            session_id=session_id,
            chunk_index=index,
            total_chunks=len(chunks),
            file_hash=digest(b"".join(chunks)),
            **more,
        )

    def state(self, session_id: str) -> Reply:
        """Ask for a session."""
        return self._ask("GET", f"{self.path}/session/{session_id}", {}, b"")

    def cancel(self, session_id: str) -> Reply:
        """Cancel a session."""
        return self._ask("DELETE", f"{self.path}/session/{session_id}", {}, b"")

    def begin(self, body: bytes, *, length: int) -> Connection:
        """Send the head of a POST and the beginning of its body; return the connection."""
        one = Connection(self.port)
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        headers = {"Content-Type": kind, "Content-Length": str(length), **self.headers}
        one.send(head_of("POST", self.path, headers), body)
        return one

    def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        answer = ask(self.port, method, path, {**self.headers, **headers}, body)
        return Reply(answer.status, json.loads(answer.body), answer)
