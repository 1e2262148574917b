"""What was made of a file, over HTTP: listed, and served as the file itself is."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated, Final

import msgspec
from aiohttp import web

from services.storage.conditions import Validators
from services.storage.disposition import OPAQUE, content_disposition
from services.storage.handlers import FILES, SETTINGS, explains_failures
from services.storage.openings import headers_of
from services.storage.serving import Representation, serve
from shared.blobs.artifacts import Artifact
from shared.identity import principal_of
from shared.times import rfc3339
from shared.web import json_response

__all__ = ["ArtifactList", "ListedArtifact", "add_artifact_routes"]

_TYPES: Final = {
    ".avif": "image/avif",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".csv": "text/csv",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
}
"""By extension: who makes artifacts names them by what they are. None runs in a browser."""


class ListedArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact of a file."""

    name: Annotated[str, msgspec.Meta(description="The last part of its path")]
    size: Annotated[int, msgspec.Meta(description="Bytes")]
    content_type: Annotated[str, msgspec.Meta(description="What it is served as")]
    modified_at: Annotated[
        str,
        msgspec.Meta(
            description="When it was made (RFC 3339)", extra_json_schema={"format": "date-time"}
        ),
    ]


class ArtifactList(msgspec.Struct, frozen=True, kw_only=True):
    """All artifacts of a file."""

    artifacts: Annotated[list[ListedArtifact], msgspec.Meta(description="By name")]


def add_artifact_routes(router: web.UrlDispatcher) -> None:
    """Register the endpoints."""
    path = "/api/v1/storage/{file_id}/artifacts"
    router.add_get(path, list_artifacts, allow_head=False)
    router.add_get(f"{path}/{{name}}", download_artifact)


@explains_failures
async def list_artifacts(request: web.Request) -> web.StreamResponse:
    """GET: what there is."""
    files, file_id = request.app[FILES], request.match_info["file_id"]
    await files.find(file_id, principal_of(request))
    listed = [_listed(one) for one in await files.artifacts.all(file_id)]
    return json_response(
        ArtifactList(artifacts=listed), headers={"Cache-Control": "private, no-cache"}
    )


def _listed(artifact: Artifact) -> ListedArtifact:
    return ListedArtifact(
        name=artifact.name,
        size=artifact.size,
        content_type=_type_of(artifact.name),
        modified_at=rfc3339(int(artifact.modified_at * 1000)),
    )


def _type_of(name: str) -> str:
    return _TYPES.get(os.path.splitext(name)[1].lower(), OPAQUE)


@explains_failures
async def download_artifact(request: web.Request) -> web.StreamResponse:
    """GET and HEAD: one artifact, or the parts of it that were asked for."""
    files, file_id = request.app[FILES], request.match_info["file_id"]
    await files.find(file_id, principal_of(request))
    artifact, fd = await files.artifacts.open(file_id, request.match_info["name"])
    try:
        validators = Validators(
            f'"{artifact.tag}"', int(artifact.modified_at), replaceable=True
        )
        what = Representation(
            size=artifact.size,
            validators=validators,
            headers=headers_of(validators),
            disposition=content_disposition(artifact.name),
            content_type=_type_of(artifact.name),
            digests={},
            fd=fd,
            read=partial(files.artifacts.read_range, file_id, artifact),
        )
        stall_s = request.app[SETTINGS].download_stall_timeout
        return await serve(request, what, stall_timeout_s=stall_s)
    finally:
        if fd is not None:
            os.close(fd)
