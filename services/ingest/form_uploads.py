"""What a form brings: a chunk, kept apart until all are there, or a whole file.

The file may come before the fields that say what it is. So what could be a chunk is staged
until they are there; what is too long for one must be a whole file, and goes where it belongs
while it comes. A form that is refused, or ends early, leaves nothing: a file that comes whole
cannot be resumed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from msgspec.structs import replace

from services.ingest import form
from services.ingest.errors import BodyStalled, Locked
from services.ingest.form import FormLimits, Submission
from services.ingest.form_answer import SessionData, data_of
from services.ingest.form_reader import FilePart, FormReader
from services.ingest.form_sessions import FormSessions, Incoming, session_cancelled
from services.ingest.form_staging import Staged, check_same_file, stage_file
from services.ingest.progress import ProgressReporter
from services.ingest.receive import Ended
from services.ingest.settings import Settings
from services.ingest.writers import Lease
from shared.blobs.store import BlobWriter, Chunk, ChunkWriter, Stored, UploadNotFound
from shared.errors import ApiError, InvalidRequest, NotFound, PayloadTooLarge, Unavailable
from shared.identity import Principal
from shared.sidecar import Sidecar, new_id

__all__ = ["FormUploads"]

log = structlog.stdlib.get_logger(__name__)


class FormUploads:
    """Takes what forms bring to this process.

    Args:
        sessions: What the forms belong to.
        progress: Publishes positions.
        settings: Limits and times.

    """

    def __init__(
        self, sessions: FormSessions, *, progress: ProgressReporter, settings: Settings
    ) -> None:
        self._sessions: Final = sessions
        self._uploads: Final = sessions.uploads
        self._progress: Final = progress
        self._settings: Final = settings
        self._limits: Final = FormLimits(
            max_file_size=settings.upload_max_file_size,
            max_chunk_size=settings.upload_max_chunk_size,
            max_chunks=settings.upload_max_chunks,
            default_priority=settings.default_processing_priority,
        )

    async def receive(
        self,
        reader: FormReader,
        kind: str,
        caller: Principal,
        *,
        admit: Callable[[], Awaitable[None]],
    ) -> SessionData:
        """Take a form; return the state of its session after it.

        Args:
            reader: Of the form.
            kind: ``video``, ``csv`` or ``file``.
            caller: Who sends it.
            admit: Called before a session is opened for it, which only the form's fields
                show; raises if that is refused.

        Raises:
            ApiError: The form is refused, and nothing of it is left.
            UploadNotFound, LeaseUnavailable, OSError: The store fails.

        """
        self._uploads.disk.admit(reader.length or 0)
        part = await reader.next_file()
        said = form.parse_fields(reader.fields, self._limits)
        known = await self._known(said, kind, caller)
        if said.chunk_index is not None:
            reader.check_length(self._limits.max_chunk_size)
        incoming = Incoming(
            kind=kind,
            caller=caller,
            filename=part.filename,
            content_type=part.content_type,
            home=known.sidecar.upload_id if known is not None else new_id(),
            admit=admit,
        )
        async with self._measuring(known), self._staging(incoming.home) as staging:
            staged = await stage_file(
                part,
                staging,
                most=self._most,
                judge=self._judge(said, incoming, known),
                settings=self._settings,
            )
            if staged.ended is not Ended.COMPLETE:
                raise self._early_end(staged.ended, None)
            if not staged.is_whole:
                self._check_long(said, staged)
                self._uploads.judge(incoming.creation(said, None), staged.head)
                return await self._take_long(reader, incoming, part, staging)
            await reader.finish()
            said = form.parse_fields(reader.fields, self._limits)
            if said.chunk_index is None:
                creation = incoming.creation(said, staged.size)
                self._uploads.judge(creation, staged.head, complete=True)
                return await self._take_short(said, incoming, staging, staged)
            return await self._take_chunk(said.chunk_index, said, incoming, staging, staged)

    def _judge(
        self, said: Submission, incoming: Incoming, known: Stored | None
    ) -> Callable[[bytes], bool]:
        """Return who looks at bytes of which it is certain that the file begins with them."""
        if said.chunk_index != 0:
            return lambda _: True
        subject = incoming.creation(said, None) if known is None else known.sidecar
        return lambda head: self._uploads.judge(subject, head)

    @property
    def _most(self) -> int:
        """Bytes that are staged at most, and a little more."""
        limits = self._limits
        return min(limits.max_chunk_size, limits.max_file_size or limits.max_chunk_size)

    def _check_long(self, said: Submission, staged: Staged) -> None:
        most = self._limits.max_file_size
        if said.chunk_index is not None:
            raise _chunk_too_large(self._limits.max_chunk_size)
        if most and staged.size > most:
            raise _file_too_large(most)

    async def _known(self, said: Submission, kind: str, caller: Principal) -> Stored | None:
        """Return the session that the fields so far name, if it is there and can fit."""
        if not said.session_id:
            return None
        known = await self._sessions.find(said.session_id, caller)
        if known is not None and said.chunk_index is not None:
            self._sessions.check_fits(said, known, kind)
        return known

    @asynccontextmanager
    async def _staging(self, home: str) -> AsyncIterator[ChunkWriter]:
        writer = await self._uploads.store.stage(home)
        try:
            yield writer
        finally:
            await writer.discard()

    @asynccontextmanager
    async def _measuring(self, known: Stored | None) -> AsyncIterator[None]:
        """Measure how fast chunks come, from the beginning of each."""
        if known is None or not form.total_chunks_of(known.sidecar):
            yield
            return
        before = await self._uploads.store.chunks(known.sidecar.upload_id)
        self._progress.begin(known.sidecar, sum(one.size for one in before))
        try:
            yield
        except BaseException:
            self._sessions.tell(known.sidecar, before)
            raise

    # A chunk.

    async def _take_chunk(
        self,
        index: int,
        said: Submission,
        incoming: Incoming,
        staging: ChunkWriter,
        staged: Staged,
    ) -> SessionData:
        stored = await self._session_for(said, incoming, staged)
        sidecar, chunks = stored.sidecar, None
        if sidecar.status == "created" and not stored.visible:
            if index == 0:
                self._uploads.judge(sidecar, staged.head)
            with suppress(UploadNotFound):  # it is complete by now, or was cancelled
                chunks = await self._commit(index, stored, staging, staged)
        if chunks is None or all(one.index != index for one in chunks):
            chunks = None
            try:
                stored = await self._uploads.find(sidecar.upload_id, incoming.caller)
            except NotFound:
                raise session_cancelled() from None
        return await self._sessions.settled(stored, chunks)

    async def _session_for(
        self, said: Submission, incoming: Incoming, staged: Staged
    ) -> Stored:
        """Return the session of a chunk, opened if it is the first one."""
        stored = None
        if said.session_id:
            stored = await self._sessions.find(said.session_id, incoming.caller)
        if stored is None:
            if said.total_chunks is None:
                raise InvalidRequest("total_chunks is needed to open a session.")
            form.check_room((), 0, staged.size, self._limits.max_file_size)
            creation = incoming.creation(said, None)
            if said.chunk_index == 0:
                self._uploads.judge(creation, staged.head, complete=said.total_chunks == 1)
            await incoming.admit()
            sidecar = await self._sessions.open(creation, incoming.caller, coming=staged.size)
            stored = await self._uploads.find(sidecar.upload_id, incoming.caller)
        self._sessions.check_fits(said, stored, incoming.kind)
        return stored

    async def _commit(
        self, index: int, stored: Stored, staging: ChunkWriter, staged: Staged
    ) -> list[Chunk]:
        """Make the chunk part of its session; return what the session has then.

        Raises:
            ChunkConflict: There is another one in its place.
            PayloadTooLarge: The file would be too large with it.
            QuotaExceeded, Unavailable: As ``Quotas.reserve``.
            UploadNotFound: The session takes no chunks any more.

        """
        store, upload_id = self._uploads.store, stored.sidecar.upload_id
        largest = form.total_chunks_of(stored.sidecar) * self._limits.max_chunk_size
        quotas = self._uploads.quotas
        if 0 < self._limits.max_file_size < largest or quotas.enabled:
            before = await store.chunks(upload_id)
            form.check_room(before, index, staged.size, self._limits.max_file_size)
            if all(one.index != index for one in before):
                count = sum(one.size for one in before) + staged.size
                await quotas.reserve(upload_id, stored.sidecar.facts, count)
        there = await staging.commit(upload_id, index, staged.digest)
        form.check_same_bytes(staged.digest, there)
        self._uploads.remind(stored.sidecar, stored.modified_at)
        chunks = await store.chunks(upload_id)
        self._sessions.tell(stored.sidecar, chunks)
        return chunks

    # A whole file.

    async def _take_short(
        self, said: Submission, incoming: Incoming, staging: ChunkWriter, staged: Staged
    ) -> SessionData:
        """Take a file that is no longer than a chunk may be."""
        begun = await self._begin_whole(said, incoming, staged.size)
        if isinstance(begun, SessionData):
            await check_same_file(self._uploads.store, begun, staged)
            return begun
        if begun.status != "created":  # its bytes were there already
            return data_of(begun, (), staging.size)
        async with self._uploads.writers.writing(begun.upload_id) as lease:
            async with self._abandoning(lease.writer, incoming.caller):
                await lease.writer.take(staging)
                await lease.writer.sync()
            await self._uploads.complete(lease.writer)
            return data_of(lease.writer.sidecar, (), lease.writer.offset)

    async def _take_long(
        self, reader: FormReader, incoming: Incoming, part: FilePart, staging: ChunkWriter
    ) -> SessionData:
        """Take a file of which the beginning is staged, and the rest is still to come."""
        said = form.parse_fields(reader.fields, self._limits)
        begun = await self._begin_whole(said, incoming, None)
        if isinstance(begun, SessionData):
            return begun
        if begun.status != "created":  # its bytes were there already, says their hash
            return data_of(begun, (), 0)
        async with self._uploads.writers.writing(begun.upload_id) as lease:
            writer = lease.writer
            async with self._abandoning(writer, incoming.caller):
                await writer.take(staging)
                most = self._limits.max_file_size
                room = most - writer.offset if most else None
                ended = await self._uploads.append(lease, part, room)
                if ended is not Ended.COMPLETE:
                    raise self._early_end(ended, lease)
                await reader.finish()
                said = form.parse_fields(reader.fields, self._limits)
                if said.chunk_index is not None:
                    raise _chunk_too_large(self._limits.max_chunk_size)
                finished = await self._finished_before(said, incoming, begun.upload_id)
                if finished is None:
                    await self._amend(writer, said)
            if finished is not None:
                await self._abandon(writer, incoming.caller)
                return await self._sessions.settled(finished)
            await self._uploads.complete(writer)
            return data_of(writer.sidecar, (), writer.offset)

    async def _begin_whole(
        self, said: Submission, incoming: Incoming, size: int | None
    ) -> Sidecar | SessionData:
        """Open the session of a file that comes whole; return its state if it is there.

        A file that broke off under the same name is given up: it begins anew.
        """
        stored = None
        if said.session_id:
            stored = await self._sessions.find(said.session_id, incoming.caller)
        if stored is not None:
            self._sessions.check_fits(said, stored, incoming.kind)
            state = await self._sessions.settled(stored)
            if state.status != "active":
                return state
            await self._give_up(stored.sidecar, incoming.caller)
            incoming = replace(incoming, home=new_id())
        await incoming.admit()
        opened = await self._sessions.open(incoming.creation(said, size), incoming.caller)
        if opened.upload_id != incoming.home:
            raise Locked("Another request is sending this file.")
        return opened

    async def _give_up(self, sidecar: Sidecar, caller: Principal) -> None:
        with suppress(UploadNotFound):  # the request that was sending it has ended it
            async with self._uploads.writers.writing(sidecar.upload_id) as lease:
                await self._abandon(lease.writer, caller)

    @asynccontextmanager
    async def _abandoning(self, writer: BlobWriter, caller: Principal) -> AsyncIterator[None]:
        """End an upload whose bytes did not come whole."""
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the reaper ends it when its time is over
                await self._abandon(writer, caller)
            raise

    async def _abandon(self, writer: BlobWriter, caller: Principal) -> None:
        sidecar = writer.sidecar
        if sidecar.status == "created":
            await self._uploads.terminate(writer)
            if sidecar.form is not None and sidecar.form.session_id:
                names = self._sessions.names
                await names.release(caller, sidecar.form.session_id, sidecar.upload_id)

    def _early_end(self, ended: Ended, lease: Lease | None) -> ApiError:
        if ended is Ended.OVERLONG:
            return _file_too_large(self._limits.max_file_size)
        if ended is Ended.STALLED:
            return BodyStalled("Nothing, or too little, came for too long.")
        if ended is Ended.CUT or lease is None:
            return InvalidRequest("The form is malformed, or ended early.")
        if lease.asked == "shutdown":
            return Unavailable("The server is restarting. Send the file again.")
        return Locked("Another request has taken over.")

    async def _finished_before(
        self, said: Submission, incoming: Incoming, upload_id: str
    ) -> Stored | None:
        """Return the upload that came earlier under the name that this one wants.

        Raises:
            Locked: It is still coming.

        """
        if not said.session_id:
            return None
        holder = await self._sessions.names.claim(incoming.caller, said.session_id, upload_id)
        if holder == upload_id:
            return None
        stored = await self._uploads.find(holder, incoming.caller)
        self._sessions.check_fits(said, stored, incoming.kind)
        if stored.sidecar.status == "created":
            raise Locked("Another request is sending this file.")
        return stored

    async def _amend(self, writer: BlobWriter, said: Submission) -> None:
        """Add what the fields after the file say, and the length, to the upload's record."""
        sidecar = writer.sidecar
        facts = replace(
            sidecar.facts,
            size=writer.offset,
            options=said.options,
            priority=said.priority,
            session_id=said.session_id,
        )
        expected = {"sha256": said.file_hash} if said.file_hash else {}
        await writer.record(
            replace(sidecar, facts=facts, form=said.as_form(), expected=expected)
        )


def _chunk_too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"A chunk may have at most {most} bytes.")


def _file_too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The file may have at most {most} bytes.")
