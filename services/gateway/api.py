"""What the gateway offers, for its OpenAPI document."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Annotated, Final

import msgspec

from services.gateway.dialects import ALL, Dialect
from services.gateway.errors import InvalidStatus, ProgressNotFound, UpgradeRequired
from services.gateway.rest import LIMIT, MOST, PATH, Progress, Sessions
from services.gateway.tickets import TICKET_S, MadeTicket, TicketRequest
from services.gateway.upkeep import CleanupRequest, CleanupResult, Stats
from shared.api_routes import CONDITION, TAGGED, UNCHANGED
from shared.errors import InvalidRequest, NotFound, PayloadTooLarge, Problem, Unavailable
from shared.operations import (
    JSON,
    PROBLEM,
    Body,
    Header,
    Operation,
    Parameter,
    Response,
    Section,
)

__all__ = ["ASYNCAPI", "IN_URL", "PROGRESS", "SECTIONS", "SOCKETS", "TICKETS"]


class ServerSentEvent(msgspec.Struct, omit_defaults=True):
    """One event of a stream, as its lines spell it."""

    data: Annotated[str, msgspec.Meta(description="JSON")]
    event: str = "message"
    id: Annotated[str, msgspec.Meta(description="To go on from: `Last-Event-ID`")] = ""


_AUTHORIZED: Final = '-H "Authorization: Bearer $TOKEN"'
_NO_STORE: Final = Header("Cache-Control", str, "`no-store`")
_SESSION: Final = Parameter(
    "session_id", "path", str, "Id of the upload, or the caller's own name for the session."
)
_NAMES_TAKEN: Final = (
    "A session that the client itself has named `stats` or `cleanup` can be asked for by its "
    "id only."
)

PROGRESS: Final = Section(
    "Progress",
    "How far uploads and their processing are: to be asked for until nothing has been heard of "
    "a session for `PROGRESS_TTL_SECONDS`.",
    (
        Operation(
            name="read_progress",
            method="GET",
            path=f"{PATH}/{{session_id}}",
            summary="Ask how far an upload is",
            about="An id that is not known yet is waited for, up to two seconds: its first "
            f"event may be under way. {_NAMES_TAKEN}",
            parameters=(_SESSION,),
            responses={200: Response("Where it is.", (_NO_STORE,), {JSON: Progress})},
            errors=(ProgressNotFound, Unavailable),
            examples=(f"curl $URL{PATH}/$ID {_AUTHORIZED}",),
        ),
        Operation(
            name="delete_progress",
            method="DELETE",
            path=f"{PATH}/{{session_id}}",
            summary="Remove the progress of an upload",
            about="The file stays: only what is told of the upload goes, on all gateways at "
            "once, and nothing that is heard of it later brings it back. Sockets that watch it "
            "stay open.",
            parameters=(_SESSION,),
            responses={204: Response("It is gone.")},
            errors=(InvalidStatus, ProgressNotFound, Unavailable),
            examples=(f"curl -X DELETE $URL{PATH}/$ID {_AUTHORIZED}",),
        ),
        Operation(
            name="list_sessions",
            method="GET",
            path=f"{PATH}/user/{{user_id}}/sessions",
            summary="List a user's uploads",
            about="Newest first, one's own; with the scope `admin` those of any user of the "
            "own tenant. The next page begins where the last one ended, also if uploads have "
            "come or gone meanwhile.",
            parameters=(
                Parameter("user_id", "path", str, "The `sub` of the user's token."),
                Parameter(
                    "limit",
                    "query",
                    {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT},
                    "The most sessions on a page.",
                    always=False,
                ),
                Parameter(
                    "cursor", "query", str, "`next_cursor` of the page before.", always=False
                ),
            ),
            responses={
                200: Response(
                    "A page.",
                    (
                        _NO_STORE,
                        Header("Link", str, 'The next page, `rel="next"`', always=False),
                    ),
                    {JSON: Sessions},
                )
            },
            errors=(InvalidRequest, Unavailable),
            examples=(f'curl "$URL{PATH}/user/ada/sessions?limit=20" {_AUTHORIZED}',),
        ),
        Operation(
            name="read_stats",
            method="GET",
            path=f"{PATH}/stats",
            summary="Ask what goes on in the tenant",
            about="Needs the scope `admin`.",
            responses={200: Response("The figures.", (_NO_STORE,), {JSON: Stats})},
            errors=(Unavailable,),
            examples=(f"curl $URL{PATH}/stats {_AUTHORIZED}",),
        ),
        Operation(
            name="clean_up",
            method="POST",
            path=f"{PATH}/cleanup",
            summary="Remove the progress of finished uploads of the tenant",
            about="Needs the scope `admin`. A call looks at no more than a thousand sessions "
            "and says how many are left. What has run out is cleaned up without being asked "
            "for, every `PROGRESS_CLEANUP_INTERVAL`. Files stay.",
            body=Body({JSON: CleanupRequest}, "Which ones.", required=False),
            responses={200: Response("What was done.", media={JSON: CleanupResult})},
            errors=(InvalidRequest, Unavailable),
            examples=(
                f"curl $URL{PATH}/cleanup {_AUTHORIZED} "
                "--json '{\"older_than_seconds\": 600}'",
            ),
        ),
    ),
)

IN_URL: Final = (
    Parameter("token", "query", str, "A JWT, for browsers; it reaches no log.", always=False),
    Parameter("ticket", "query", str, "Better than a token in a URL.", always=False),
    Parameter("api_key", "query", str, "With `username`; it reaches no log.", always=False),
    Parameter("username", "query", str, "For whom the key is used.", always=False),
)
"""Credentials where headers cannot be set."""

_ACCEPTED: Final = Response(
    "The socket is open.",
    (
        Header("Upgrade", str, "`websocket`"),
        Header("Connection", str, "`upgrade`"),
        Header("Sec-WebSocket-Accept", str, "Proves that the handshake was understood"),
    ),
)

_NO_HANDSHAKE: Final = Response(
    "The request is no WebSocket handshake.", media={PROBLEM: Problem}
)


def _sockets(dialect: Dialect) -> Iterator[Operation]:
    """Yield the paths of a dialect, told apart by the parameters in them."""
    name = dialect.name
    for number, path in enumerate(dialect.paths):
        ids = re.findall(r"{(\w+)}", path)
        whose = f"one {ids[0].removesuffix('_id')}" if ids else "all that is the caller's"
        shown = re.sub(r"{\w+}", "$ID", path)
        yield Operation(
            name=f"{name}_socket_{number + 1}",
            method="GET",
            path=path,
            summary=f"Follow {whose} (dialect {name})",
            about=inspect.getdoc(dialect) or "",
            access="socket",
            parameters=(
                *(Parameter(one, "path", str, "What to follow.") for one in ids),
                *IN_URL,
            ),
            responses={101: _ACCEPTED, 400: _NO_HANDSHAKE},
            errors=(UpgradeRequired, Unavailable),
            receives=dialect.receives,
            sends=dialect.sends,
            examples=(f"websocat ws://${{URL#http://}}{shown}?token=$TOKEN",),
        )


_SINCE: Final = "Id of the last event that the client has"
_EVENTS: Final = Operation(
    name="follow_events",
    method="GET",
    path="/v1/events",
    summary="Follow uploads as Server-Sent Events",
    about="For those who cannot use WebSockets. The state of each upload comes first "
    "(`snapshot`), then its events; with `Last-Event-ID` or `since` what was missed is told "
    "again, or `gap` says with the state that it cannot be. Lines `id` stand with events only. "
    "The end of the answer is no end of the events: come back after `retry`.",
    parameters=(
        Parameter(
            "ids",
            "query",
            str,
            "Ids of uploads or of jobs, or own names of sessions, with commas; all that is the "
            "caller's without them.",
            always=False,
        ),
        Parameter("since", "query", str, f"{_SINCE}.", always=False),
        Parameter(
            "Last-Event-ID",
            "header",
            str,
            f"{_SINCE}; goes before `since`.",
            always=False,
        ),
        *IN_URL,
    ),
    responses={
        200: Response(
            "The events, as they come.",
            (Header("Cache-Control", str, "`no-store`"),),
            {"text/event-stream": ServerSentEvent},
        )
    },
    errors=(InvalidRequest, NotFound, Unavailable),
    examples=('curl -N "$URL/v1/events?ids=$ID" -H "Authorization: Bearer $TOKEN"',),
)

SOCKETS: Final = Section(
    "Live progress",
    "WebSockets with JSON text messages: the current state comes first, lifecycle events each "
    "once and in order, of progress the newest. A client says who it is by `Authorization`, "
    "`X-API-KEY` and `X-Username`, `?ticket=`, `?token=`, `?api_key=&username=`, the "
    "subprotocols `bearer, <JWT>`, or a first message with `token`. The same for "
    "programs: `/asyncapi.json`. Close codes stand in `docs/websocket.md`.",
    (
        *(one for dialect in ALL if not dialect.binary for one in _sockets(dialect)),
        _EVENTS,
    ),
)

TICKETS: Final = Section(
    "Tickets",
    "What a browser puts into the URL of a socket or an event stream instead of a token.",
    (
        Operation(
            name="make_ticket",
            method="POST",
            path="/v1/events/ticket",
            summary="Get a ticket for a URL",
            about=f"Good once, within {TICKET_S} seconds, for the caller and for pages of one "
            "origin: the `Origin` of this request or, if a server asks for one of its pages, "
            "the `origin` in the body. With neither it is good for programs only.",
            body=Body({JSON: TicketRequest}, "Whose page will use it.", required=False),
            responses={
                201: Response(
                    "The ticket.",
                    (Header("Cache-Control", str, "`no-store`"),),
                    {JSON: MadeTicket},
                )
            },
            errors=(InvalidRequest, PayloadTooLarge, Unavailable),
            examples=(
                'curl -X POST $URL/v1/events/ticket -H "Authorization: Bearer $TOKEN"',
                'curl $URL/v1/events/ticket -H "X-API-KEY: $KEY" -H "X-Username: ada" '
                """--json '{"origin":"https://app.example.com"}'""",
                "websocat ws://${URL#http://}/ws/upload-progress?ticket=$TICKET",
            ),
        ),
    ),
)

ASYNCAPI: Final = Section(
    "This description",
    "",
    (
        Operation(
            name="read_asyncapi",
            method="GET",
            path="/asyncapi.json",
            summary="The sockets, and the streams behind them, as an AsyncAPI 3.0 document",
            access="public",
            parameters=(CONDITION,),
            responses={
                200: Response("The document.", TAGGED, {JSON: {"type": "object"}}),
                304: UNCHANGED,
            },
            examples=("curl $URL/asyncapi.json",),
        ),
    ),
)

SECTIONS: Final = (PROGRESS, TICKETS, SOCKETS, ASYNCAPI)
