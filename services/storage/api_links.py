"""Links and artifacts, for the OpenAPI document of storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from services.storage.artifacts import ArtifactList
from services.storage.errors import LinkEnded, LinkInvalid, LinksOff
from services.storage.files import Quarantined
from services.storage.links import LONGEST_S, LinkRequest, MadeLink
from shared.errors import Conflict, InvalidRequest, NotFound, PayloadTooLarge, Unavailable
from shared.operations import (
    JSON,
    Body,
    Header,
    Operation,
    Parameter,
    Response,
    Section,
)

__all__ = ["derived_sections"]

_PATH: Final = "/api/v1/storage/{file_id}"
_NAME: Final = Parameter("name", "path", str, "Of the artifact, as it is listed.")
_LINK: Final = Parameter("link", "query", str, "What the link has.")
_NOT_KEPT: Final = (Header("Cache-Control", str, "`no-store`"),)


def derived_sections(file_id: Parameter, downloads: Iterable[Operation]) -> tuple[Section, ...]:
    """Return what is served as a file is, and what goes with it.

    Args:
        file_id: The parameter.
        downloads: GET and HEAD of a file.

    """
    gets = tuple(downloads)
    return (
        Section(
            "Links",
            "A URL by which anybody gets one file, until it ends: at its time, with the file, "
            "or when the links of the file are revoked.",
            (*_links(file_id), *map(_by_link, gets)),
        ),
        Section(
            "Artifacts",
            "What was made of a file: thumbnails, tables, results. They go with it.",
            (_listing(file_id), *map(_of_artifact, gets)),
        ),
    )


def _links(file_id: Parameter) -> tuple[Operation, ...]:
    example = 'curl -X {} $URL/api/v1/storage/$ID/links -H "Authorization: Bearer $TOKEN"{}'
    return (
        Operation(
            name="make_link",
            method="POST",
            path=f"{_PATH}/links",
            summary="Get a link to a file that anybody can use",
            about=f"For at most {LONGEST_S} seconds. One that is good once ends with the first "
            "answer that has bytes of the file, or of a part; a player that seeks needs one "
            "that may be used again. Give it away over a safe channel; keep it out of logs.",
            parameters=(file_id,),
            body=Body({JSON: LinkRequest}, "What it is to allow.", required=False),
            responses={201: Response("The link.", _NOT_KEPT, {JSON: MadeLink})},
            errors=(
                InvalidRequest,
                NotFound,
                Quarantined,
                PayloadTooLarge,
                LinksOff,
                Unavailable,
            ),
            examples=(
                example.format("POST", ""),
                example.format("POST", """ --json '{"expires_in":600,"single_use":true}'"""),
            ),
        ),
        Operation(
            name="revoke_links",
            method="DELETE",
            path=f"{_PATH}/links",
            summary="End all links to a file",
            parameters=(file_id,),
            responses={204: Response("No link that was made until now is good.")},
            errors=(NotFound, Conflict, Unavailable),
            codes={Quarantined.error_code: "409: It has not been cleared yet."},
            examples=(example.format("DELETE", ""),),
        ),
    )


def _by_link(get: Operation) -> Operation:
    """Return the operation that gets a file by a link instead of credentials."""
    return replace(
        get,
        name=f"{get.name}_by_link",
        path=f"{_PATH}/shared",
        summary=f"{get.summary}, by a link",
        about="The URL of a link, answered as its owner would be.",
        access="public",
        parameters=(*get.parameters, _LINK),
        errors=(*get.errors, LinkInvalid, LinkEnded),
        codes={
            "LINK_REVOKED": "410: The links of the file were revoked.",
            "LINK_USED": "410: The link was good once.",
        },
        examples=('curl -O -J "$LINK"',) if get.method == "GET" else ('curl -I "$LINK"',),
    )


def _of_artifact(get: Operation) -> Operation:
    """Return the operation that gets an artifact instead of the file."""
    path = f"{_PATH}/artifacts/{{name}}"
    responses = {status: one for status, one in get.responses.items() if status != 307}
    option = "-O" if get.method == "GET" else "-I"
    return replace(
        get,
        name=f"{get.name}_artifact",
        path=path,
        summary=f"{get.summary.replace('a file', 'an artifact')}",
        about="As a file is; its tag changes when it is made anew.",
        parameters=(*get.parameters, _NAME),
        responses=responses,
        examples=(
            f"curl {option} $URL/api/v1/storage/$ID/artifacts/thumb.jpg "
            '-H "Authorization: Bearer $TOKEN"',
        ),
    )


def _listing(file_id: Parameter) -> Operation:
    return Operation(
        name="list_artifacts",
        method="GET",
        path=f"{_PATH}/artifacts",
        summary="List what was made of a file",
        parameters=(file_id,),
        responses={
            200: Response(
                "All of it, by name.",
                (Header("Cache-Control", str, "Kept by nobody but the caller"),),
                {JSON: ArtifactList},
            )
        },
        errors=(NotFound, Quarantined, Unavailable),
        examples=('curl $URL/api/v1/storage/$ID/artifacts -H "Authorization: Bearer $TOKEN"',),
    )
