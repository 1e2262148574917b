"""Uploads are opened, in each protocol, with what may be wrong with it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    multiple,
    rule,
)

from tests.ingest.evidence import digest
from tests.ingest.interleavings.looking import (
    CHECKSUMS,
    LENGTHS,
    SIZES,
    STARTS,
    UPLOADS,
    Checksum,
    Looking,
    checksum,
)
from tests.ingest.interleavings.upload import Kind, Upload, content_of
from tests.ingest.parts import PARTIAL, join
from tests.ingest.tus_client import CHUNK, metadata, path_of

__all__ = ["Opening"]


class Opening(Looking):
    """Clients that open uploads."""

    @initialize(target=UPLOADS, start=STARTS, length=LENGTHS, other=LENGTHS)
    def create_two(self, start: int, length: int, other: int) -> object:
        """Begin with two uploads, one of them to be joined with others."""
        return multiple(
            self.open_tus(content_of(start, length), {}, "file"),
            self.open_tus(content_of(start, other), PARTIAL, "part"),
        )

    def open_tus(self, content: bytes, headers: dict[str, str], kind: Kind) -> Upload:
        """Open an upload of tus."""
        return self.note(Upload(self.tus.create(len(content), headers), kind, content))

    @rule(
        target=UPLOADS,
        start=STARTS,
        length=LENGTHS,
        first=SIZES,
        sum_=CHECKSUMS,
        partial=st.booleans(),
        deferred=st.booleans(),
    )
    def create(
        self,
        start: int,
        length: int,
        first: int,
        sum_: Checksum | None,
        partial: bool,
        deferred: bool,
    ) -> Upload:
        """Open an upload with a first piece, which may not be what its checksum says."""
        content = content_of(start, length)
        piece = content[:first]
        size = {"Upload-Defer-Length": "1"} if deferred else {"Upload-Length": str(length)}
        concat = PARTIAL if partial else {}
        kind = {"Content-Type": CHUNK["Content-Type"], **checksum(piece, sum_)}
        answer = self.tus.post({**size, **concat, **kind}, piece)
        wrong = sum_ == "wrong"
        assert answer.status == (460 if wrong else 201), answer
        one = Upload(path_of(answer), "part" if partial else "file", content, deferred=deferred)
        if not wrong:
            assert answer.headers["Upload-Offset"] == str(len(piece))
            self.took(one, len(piece))
        self.all.append(one)
        self.touched.add(one)
        return one

    @rule(target=UPLOADS, start=STARTS, length=LENGTHS, right=st.booleans())
    def create_declared(self, start: int, length: int, right: bool) -> Upload:
        """Open an upload whose SHA-256 is declared; its bytes may be there already."""
        content = content_of(start, length + 1)
        sha256 = digest(content if right else content + b"!")
        headers = {"Upload-Metadata": metadata(sha256=sha256)}
        answer = self.tus.post({"Upload-Length": str(len(content)), **headers})
        assert answer.status == 201, answer
        one = Upload(path_of(answer), "file", content, is_doomed=not right)
        if "Upload-Offset" in answer.headers:
            assert answer.headers["Upload-Offset"] == str(one.length)
            assert right
            one.completed()
        return self.note(one)

    @rule(target=UPLOADS, start=STARTS, length=LENGTHS, first=SIZES)
    def create_ietf(self, start: int, length: int, first: int) -> Upload:
        """Open an upload in the other protocol, with a first piece."""
        content = content_of(start, length + 1)
        piece = content[: min(first, length)]
        headers = {"Upload-Length": str(len(content))}
        one = Upload(self.ietf.create(piece, headers), "ietf", content)
        one.least = one.most = len(piece)
        return self.note(one)

    @rule(target=UPLOADS, parts=st.lists(UPLOADS, min_size=1, max_size=3))
    def join(self, parts: list[Upload]) -> object:
        """Ask for a final upload of what may be parts, complete or not."""
        for one in parts:
            if one.is_doubtful:
                self.look(one)
        refusals = {400 for one in parts if one.state != "gone" and one.kind != "part"}
        refusals |= {410 for one in parts if one.is_expired}
        refusals |= {404 for one in parts if one.state == "gone"}
        answer = join(self.tus, *(one.path for one in parts))
        assert answer.status in (refusals or {201}), answer
        if answer.status != 201:
            return parts[0]
        content = b"".join(one.content for one in parts)
        final = Upload(path_of(answer), "final", content, parts=parts)
        final.most = final.length
        return self.note(final)
