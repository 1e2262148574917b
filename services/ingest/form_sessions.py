"""Sessions of uploads by form: found, opened, told about, made into a file, cancelled.

A session is an upload like any other, and what is durable of it is in the store: a request may
come to any process, and any of them may have been killed in the middle of the one before. The
request that finds all chunks there joins them, under the right to write, so that it happens
once; if it dies, the next request does it, also one that only asks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from services.ingest import form
from services.ingest.claimed import clean_filename, clean_type
from services.ingest.creation import Creation
from services.ingest.errors import Gone, Locked, SessionMismatch, SessionOver
from services.ingest.form import Submission
from services.ingest.form_answer import SessionData, data_of
from services.ingest.progress import ProgressReporter
from services.ingest.sessions import SessionNames
from services.ingest.uploads import Uploads
from shared.blobs.store import Chunk, Stored, UploadNotFound
from shared.errors import InvalidRequest, NotFound
from shared.identity import Principal
from shared.sidecar import Sidecar, is_upload_id

__all__ = ["FormSessions", "Incoming", "session_cancelled"]

log = structlog.stdlib.get_logger(__name__)


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a form beside its fields."""

    kind: str
    """``video``, ``csv`` or ``file``."""
    caller: Principal
    filename: str
    """As the client gave it."""
    content_type: str
    home: str
    """The session that it is for, or the id of the one that it will open."""
    admit: Callable[[], Awaitable[None]]
    """Called before a session is opened for it; raises if there were too many."""

    def creation(self, said: Submission, size: int | None) -> Creation:
        """Return what opens a session for this form."""
        return Creation(
            size=size,
            filename=clean_filename(self.filename),
            content_type=clean_type(self.content_type),
            kind=self.kind,
            options=said.options,
            priority=said.priority,
            expected={"sha256": said.file_hash} if said.file_hash else {},
            protocol="form",
            form=said.as_form(),
            upload_id=self.home,
        )


def session_cancelled() -> Gone:
    """Return the refusal of a form whose session was cancelled."""
    return Gone("This session was cancelled.", error_code="SESSION_CANCELLED")


class FormSessions:
    """The sessions that clients feed with forms.

    Args:
        uploads: Opens, completes and ends what becomes a file.
        names: Names that clients give to their sessions.
        progress: Publishes positions.
        max_file_size: Bytes; 0 is no limit.

    """

    def __init__(
        self,
        uploads: Uploads,
        *,
        names: SessionNames,
        progress: ProgressReporter,
        max_file_size: int,
    ) -> None:
        self.uploads: Final = uploads
        self.names: Final = names
        self._progress: Final = progress
        self._max_file_size: Final = max_file_size

    async def find(self, session_id: str, caller: Principal) -> Stored | None:
        """Return a session by the caller's name for it, or by its id.

        Raises:
            Forbidden: It is the id of somebody else's.

        """
        if is_upload_id(session_id):
            with suppress(NotFound):
                return await self.uploads.find(session_id, caller)
        upload_id = await self.names.find(caller, session_id)
        if upload_id is not None:
            with suppress(NotFound):
                return await self.uploads.find(upload_id, caller)
        return None

    async def state(self, session_id: str, kind: str, caller: Principal) -> SessionData:
        """Return the state of a session; joins its chunks if that is still to be done.

        Raises:
            NotFound: The caller has no such session.
            Forbidden: It is somebody else's.
            Gone: It was not continued in time.
            QuotaExceeded, Unavailable: All of it is there, but cannot be kept, or not now.

        """
        stored = await self._known(session_id, kind, caller)
        self._refuse_expired(stored)
        return await self.settled(stored)

    async def cancel(self, session_id: str, kind: str, caller: Principal) -> None:
        """End a session and remove what came of it.

        Raises:
            NotFound: The caller has no such session.
            Forbidden: It is somebody else's.
            SessionOver: It is complete: what is left is a file.

        """
        sidecar = (await self._known(session_id, kind, caller)).sidecar
        if sidecar.status == "failed":  # nobody can write to it any more
            await self.names.end(sidecar)
        with suppress(UploadNotFound):  # a request that was asked to let go has ended it
            async with self.uploads.writers.writing(sidecar.upload_id) as lease:
                if lease.writer.sidecar.status in {"completed", "quarantined"}:
                    raise SessionOver("The upload is complete. Delete the file instead.")
                await self.names.end(sidecar)
                await self.uploads.terminate(lease.writer)

    async def _known(self, session_id: str, kind: str, caller: Principal) -> Stored:
        with suppress(InvalidRequest):  # what cannot be a name is none that is known
            stored = await self.find(form.check_session_id(session_id), caller)
            if stored is not None and stored.sidecar.facts.kind == kind:
                return stored
        raise NotFound("There is no such upload session.")

    def _refuse_expired(self, stored: Stored) -> None:
        if self.uploads.is_expired(stored):
            raise Gone("The session was not continued in time.")

    def check_fits(self, said: Submission, stored: Stored, kind: str) -> None:
        """Refuse a form that does not fit the session it names.

        Raises:
            Gone: The session was not continued in time.
            SessionMismatch: It is another kind of upload, or was opened otherwise.
            InvalidRequest: There is no such chunk in it.

        """
        self._refuse_expired(stored)
        if stored.sidecar.protocol != "form" or stored.sidecar.facts.kind != kind:
            raise SessionMismatch(f"The session is not one of /v1/upload/{kind}.")
        form.check_place(said, stored.sidecar)

    async def open(self, creation: Creation, caller: Principal, *, coming: int = 0) -> Sidecar:
        """Open a session; return that of another request if it has the name already.

        Args:
            creation: What the form wants.
            caller: Who sends it.
            coming: Bytes of the chunk that it brings.

        Raises:
            Gone: The session of this name was cancelled just now.
            Unavailable: Nobody can say whether the name is free.
            OSError: The store failed.

        """
        name = creation.form.session_id if creation.form is not None else ""
        if not name:
            return await self.uploads.create(creation, caller, coming=coming)
        holder = await self.names.claim(caller, name, creation.upload_id)
        if holder != creation.upload_id:
            return (await self.uploads.find(holder, caller)).sidecar
        try:
            return await self.uploads.create(creation, caller, coming=coming)
        except BaseException:
            await self.names.release(caller, name, creation.upload_id)
            raise

    async def settled(
        self, stored: Stored, chunks: Sequence[Chunk] | None = None
    ) -> SessionData:
        """Return the state of a session, completing it first if all of it is there.

        Args:
            stored: The session.
            chunks: Those that are there, if the caller has just looked.

        Raises:
            QuotaExceeded, Unavailable: As ``Quotas.reserve``; the chunks stay.
            StorageFull: The disk has no room to join them; they stay.

        """
        sidecar = stored.sidecar
        total = form.total_chunks_of(sidecar)
        if sidecar.status == "created" and total and chunks is None:
            chunks = await self.uploads.store.chunks(sidecar.upload_id)
            if not chunks:  # none has come, or they were joined since the record was read
                stored = await self.uploads.store.read(sidecar.upload_id)
                sidecar = stored.sidecar
        if sidecar.status != "created":
            self._progress.changed(sidecar, stored.offset)
            return data_of(sidecar, (), stored.offset)
        chunks = chunks or ()
        is_whole = len(chunks) == total if total else stored.offset == sidecar.size
        if is_whole or stored.visible:
            return await self._complete(sidecar, chunks)
        return data_of(sidecar, chunks, stored.offset)

    async def _complete(self, sidecar: Sidecar, chunks: Sequence[Chunk]) -> SessionData:
        try:
            async with self.uploads.writers.writing(sidecar.upload_id) as lease:
                writer = lease.writer
                if writer.sidecar.status == "created":
                    if chunks and not writer.visible:
                        # Chunks that came together may not have been counted together.
                        count = sum(one.size for one in chunks)
                        self.uploads.disk.admit(count)  # they are copied
                        await self.uploads.quotas.reserve(
                            sidecar.upload_id, sidecar.facts, count
                        )
                        await writer.join_chunks(chunks)
                        await self.uploads.declare_length(writer, writer.offset)
                    if self._max_file_size and writer.offset > self._max_file_size:
                        # Chunks that came together may pass the limit that each one kept.
                        message = f"The file has more than {self._max_file_size} bytes."
                        await self.uploads.fail(writer, "PAYLOAD_TOO_LARGE", message)
                    else:
                        await self.uploads.complete(writer)
                return data_of(writer.sidecar, (), writer.offset)
        except UploadNotFound:
            raise session_cancelled() from None
        except Locked:  # whoever joins them takes long
            return data_of(sidecar, chunks, 0)

    def tell(self, sidecar: Sidecar, chunks: Sequence[Chunk]) -> None:
        """Let those who watch know how far a session is that gets chunks."""
        if chunks:
            size = form.estimated_size(chunks, form.total_chunks_of(sidecar))
            sidecar = replace(sidecar, facts=replace(sidecar.facts, size=size))
        self._progress.pause(sidecar, sum(one.size for one in chunks), chunks)
