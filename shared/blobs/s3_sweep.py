"""Finds what belongs to no upload in a store on S3. Ages are by the server's clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from shared.blobs.s3_calls import NoSuchUpload
from shared.blobs.s3_chunks import CLAIM, FRESH
from shared.blobs.s3_keys import Listed
from shared.blobs.s3_view import look
from shared.blobs.store import UploadNotFound
from shared.sidecar import SidecarDamaged

if TYPE_CHECKING:
    from shared.blobs.s3 import S3Store

__all__ = ["sweep_leftovers"]

log = structlog.stdlib.get_logger(__name__)

_SCAFFOLD: Final = (".tail.", ".parts.", ".chunks/", ".touch")


async def sweep_leftovers(store: S3Store, *, older_than_s: float, dry_run: bool) -> list[str]:
    """Remove what is old and nobody's; return what that was.

    Complete bytes without a record stay, and are told in the log: somebody has lost the record,
    and wants them.
    """
    before = await store.client.now() - older_than_s
    found = await _multipart_uploads(store, before, dry_run)
    async for group in _groups(store):
        found += await _objects(store, group, before, dry_run)
    return found + await _open_marks(store, before, dry_run)


async def _multipart_uploads(store: S3Store, before: float, dry_run: bool) -> list[str]:
    found = []
    for key, multipart_id, began_at in await store.client.uploads(store.keys.prefix):
        if began_at > before or await _is_owned(store, key, multipart_id):
            continue
        if await _last_change(store, key, multipart_id) <= before:
            found.append(f"{key.removeprefix(store.keys.prefix)} (multipart upload)")
            if not dry_run:
                await store.client.abort(key, multipart_id)
    return found


async def _last_change(store: S3Store, key: str, multipart_id: str) -> float:
    try:
        return (await store.client.parts(key, multipart_id))[1]
    except NoSuchUpload:  # it has just ended
        return math.inf


async def _is_owned(store: S3Store, key: str, multipart_id: str) -> bool:
    upload_id = store.keys.id_of(key)
    if not upload_id:
        return True  # not ours to judge
    if store.keys.rest_of(key).startswith(f".chunks/{FRESH}"):
        return False
    try:
        view = await look(store.client, store.keys, upload_id)
    except UploadNotFound:
        return False
    except SidecarDamaged:
        return True
    return view.layout is not None and view.layout.multipart_id == multipart_id


async def _groups(store: S3Store) -> AsyncIterator[list[Listed]]:
    """Yield the objects of one upload at a time: their keys follow each other."""
    group: list[Listed] = []
    async for page in store.client.listing(store.keys.prefix):
        for one in page:
            upload_id = store.keys.id_of(one.key)
            if group and upload_id != store.keys.id_of(group[0].key):
                yield group
                group = []
            if upload_id and one.key.startswith(store.keys.blob(upload_id)):
                group.append(one)
    if group:
        yield group


async def _objects(
    store: S3Store, group: Sequence[Listed], before: float, dry_run: bool
) -> list[str]:
    upload_id = store.keys.id_of(group[0].key)
    rests = {store.keys.rest_of(one.key) for one in group}
    old = {store.keys.rest_of(one.key) for one in group if one.modified_at <= before}
    if ".info" not in rests:
        doomed = old - {""}
    else:
        doomed = set(_nobodys_chunks(rests, old))
        scaffold = {rest for rest in old if rest.startswith(_SCAFFOLD)}
        if "" in rests and scaffold - doomed and await _is_visible(store, upload_id):
            doomed |= scaffold
    blob = store.keys.blob(upload_id)
    if not dry_run:
        await store.client.remove([blob + rest for rest in sorted(doomed)])
    if ".info" not in rests and "" in old:
        log.warning("file_without_record", name=upload_id)
    return [upload_id + rest for rest in sorted(doomed)]


def _nobodys_chunks(rests: set[str], old: set[str]) -> Iterator[str]:
    """Yield what was never committed."""
    for rest in old:
        if rest.startswith(f".chunks/{FRESH}"):
            yield rest
        elif rest.startswith(".chunks/") and not rest.endswith(CLAIM):
            index = rest.removeprefix(".chunks/").partition("-")[0]
            if f".chunks/{index}{CLAIM}" not in rests:
                yield rest


async def _is_visible(store: S3Store, upload_id: str) -> bool:
    try:
        return (await store.read(upload_id)).visible
    except (UploadNotFound, SidecarDamaged):
        return False


async def _open_marks(store: S3Store, before: float, dry_run: bool) -> list[str]:
    """Remove the marks of uploads that are not unfinished."""
    found = []
    for one in await store.client.list_all(f"{store.keys.prefix}open/"):
        upload_id = store.keys.id_of(one.key)
        if not upload_id or one.modified_at > before:
            continue
        try:
            is_stale = (await store.read(upload_id)).visible
        except UploadNotFound:
            is_stale = True
        except SidecarDamaged:
            is_stale = False
        if is_stale:
            found.append(f"open/{upload_id}")
            if not dry_run:
                await store.client.remove([one.key])
    return found
