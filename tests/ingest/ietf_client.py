"""A client of the IETF's resumable uploads that does what a test tells it, right or wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from services.ingest.location import COLLECTION
from services.ingest.structured_fields import parse_dictionary
from tests.ingest.tus_client import path_of
from tests.ingest.wire import Answer, Connection, ask, head_of

__all__ = ["PROBLEMS", "VERSIONS", "Ietf", "limits_of", "problem_of"]

PROBLEMS: Final = "https://iana.org/assignments/http-problem-types#"
VERSIONS: Final = (3, 5, 6, 8, None)
"""Interop versions that clients name; ``None``: they name none."""


class Ietf:
    """Speaks one draft to one ingest process; each request has a connection of its own.

    Args:
        port: Of the public listener.
        interop: ``Upload-Draft-Interop-Version``.
        headers: Sent with every request, such as credentials.

    """

    def __init__(
        self, port: int, interop: int | None = 8, headers: Mapping[str, str] = {}
    ) -> None:
        self.port: Final = port
        self.interop: Final = interop
        named = {} if interop is None else {"Upload-Draft-Interop-Version": str(interop)}
        self._extra: Final = {**headers, **named}

    def told(self, complete: bool) -> dict[str, str]:
        """Return the header that says whether the body is the end, as the draft calls it."""
        if self.interop == 3:
            return {"Upload-Incomplete": "?0" if complete else "?1"}
        return {"Upload-Complete": "?1" if complete else "?0"}

    def is_complete(self, answer: Answer) -> bool:
        """Return what an answer says of that; it must say it in the draft's words alone."""
        assert ("Upload-Complete" in answer.headers) == (self.interop != 3), answer
        assert ("Upload-Incomplete" in answer.headers) == (self.interop == 3), answer
        if self.interop == 3:
            return {"?0": True, "?1": False}[answer.headers["Upload-Incomplete"]]
        return {"?1": True, "?0": False}[answer.headers["Upload-Complete"]]

    def ask(
        self, method: str, target: str, headers: Mapping[str, str] = {}, body: bytes = b""
    ) -> Answer:
        """Send exactly this, and the name of the draft; return the answer."""
        return ask(self.port, method, target, {**self._extra, **headers}, body)

    def post(
        self, body: bytes = b"", headers: Mapping[str, str] = {}, *, complete: bool = False
    ) -> Answer:
        """Open an upload."""
        return self.ask("POST", COLLECTION, {**self.told(complete), **headers}, body)

    def create(self, body: bytes = b"", headers: Mapping[str, str] = {}) -> str:
        """Open an upload that is not complete; return its path."""
        answer = self.post(body, headers)
        assert answer.status == 201, answer
        assert not self.is_complete(answer)
        return path_of(answer)

    def append_headers(self, offset: int | str, complete: bool) -> dict[str, str]:
        """Return the headers of a PATCH, as the draft wants them."""
        typed = {"Content-Type": "application/partial-upload"}
        untyped = self.interop in {3, 5}
        told = {"Upload-Offset": str(offset), **self.told(complete)}
        return told if untyped else {**typed, **told}

    def append(
        self,
        path: str,
        offset: int | str,
        body: bytes = b"",
        headers: Mapping[str, str] = {},
        *,
        complete: bool = False,
    ) -> Answer:
        """PATCH an upload."""
        said = self.append_headers(offset, complete)
        return self.ask("PATCH", path, {**said, **headers}, body)

    def head(self, path: str) -> Answer:
        """HEAD an upload."""
        return self.ask("HEAD", path)

    def offset(self, path: str) -> int:
        """Return how far an upload is, as HEAD says."""
        answer = self.head(path)
        assert answer.status == 204, answer
        return int(answer.headers["Upload-Offset"])

    def delete(self, path: str) -> Answer:
        """DELETE an upload."""
        return self.ask("DELETE", path)

    def begin(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Connection:
        """Send the head of a request and the beginning of its body; the caller goes on."""
        one = Connection(self.port)
        one.send(head_of(method, target, {**self._extra, **headers}), body)
        return one

    def begin_append(
        self,
        path: str,
        offset: int,
        length: int | None,
        body: bytes = b"",
        *,
        complete: bool = True,
    ) -> Connection:
        """The same for a PATCH; ``length`` as ``None`` makes it chunked, framed by hand."""
        framing = {"Transfer-Encoding": "chunked"}
        if length is not None:
            framing = {"Content-Length": str(length)}
        said = self.append_headers(offset, complete)
        return self.begin("PATCH", path, {**said, **framing}, body)


def limits_of(answer: Answer) -> dict[str, int]:
    """Return ``Upload-Limit``, which must be a dictionary of integers."""
    members = parse_dictionary(answer.headers["Upload-Limit"])
    found = {key: value for key, value in members.items() if type(value) is int}
    assert len(found) == len(members), answer
    return found


def problem_of(answer: Answer) -> dict[str, Any]:
    """Return the problem document of a refusal (RFC 9457)."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer
    found: dict[str, Any] = json.loads(answer.body)
    assert found["status"] == answer.status
    return found
