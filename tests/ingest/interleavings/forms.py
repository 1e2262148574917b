"""Files come by forms, in chunks of any order."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import (
    rule,
)

from services.ingest.location import COLLECTION
from tests.ingest.evidence import digest
from tests.ingest.form_client import Reply, body_of, file_part, text_parts
from tests.ingest.interleavings.looking import (
    STARTS,
    UPLOADS,
    Looking,
)
from tests.ingest.interleavings.upload import Upload, content_of

__all__ = ["SendingForms"]


class SendingForms(Looking):
    """Browsers that send files in chunks."""

    @rule(
        target=UPLOADS,
        start=STARTS,
        lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=4),
        first=st.integers(0, 3),
    )
    def open_form(self, start: int, lengths: list[int], first: int) -> Upload:
        """Open a session with one of the chunks of a file that comes by forms."""
        content = content_of(start, sum(lengths))
        ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
        chunks = [content[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        index = first % len(chunks)
        reply = self.forms.chunk(chunks, index)
        path = f"{COLLECTION}/{reply.data['upload_id']}"
        one = Upload(path, "form", content, chunks=chunks)
        one.most = one.length
        self.chunk_arrived(one, index, reply)
        return self.note(one)

    @rule(one=UPLOADS, index=st.integers(0, 3), how=st.sampled_from(["right", "other", "cut"]))
    def send_chunk(self, one: Upload, index: int, how: str) -> None:
        """Send a chunk by form, perhaps once more, or other bytes in its place."""
        if one.kind != "form" or not self.look(one):
            return
        index %= len(one.chunks)
        if how == "right":
            self.chunk_arrived(one, index, self.send_form(one, index))
        elif how == "other" and index in one.received:
            others = [each + b"!" if n == index else each for n, each in enumerate(one.chunks)]
            reply = self.forms.post(
                others[index],
                session_id=one.upload_id,
                chunk_index=index,
                total_chunks=len(others),
                file_hash=digest(one.content),
            )
            assert reply.status == 409, reply
        elif how == "cut":
            body = self.form_of(one, index)
            with self.forms.begin(body[: len(body) // 2], length=len(body)) as connection:
                connection.cut("fin")

    def chunk_arrived(self, one: Upload, index: int, reply: Reply) -> None:
        """Check the answer to a chunk."""
        one.received.add(index)
        whole = len(one.received | one.maybe_received) == len(one.chunks)
        if reply.status == 202:
            missing = set(reply.data["missing_chunks"])
            assert missing <= {*range(len(one.chunks))} - one.received
            assert missing or one.state == "complete", reply
            return
        assert reply.status in {200, 201}, reply
        assert reply.data["duplicate"] or whole
        assert reply.data["duplicate"] is (reply.status == 200)
        one.completed()

    def send_form(self, one: Upload, index: int) -> Reply:
        """Send a chunk of a form."""
        return self.forms.chunk(one.chunks, index, one.upload_id)

    def form_of(self, one: Upload, index: int) -> bytes:
        """Return the body of a form that brings a chunk."""
        fields = {
            "session_id": one.upload_id,
            "chunk_index": index,
            "total_chunks": len(one.chunks),
            "file_hash": digest(one.content),
        }
        return body_of([*text_parts(fields), file_part(one.chunks[index])])
