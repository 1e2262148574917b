"""Signed links: a URL by which anybody gets one file, until it ends.

The token stands in the query of the URL, never in its path: paths are logged. A link ends with
its time, with its file, when its file's links are revoked, and, if it is good once, with the
first answer that has bytes of the file. That may be a part of it: a program that seeks wants
several, and needs a link that may be used again. Whatever fails before the first byte is there
leaves a link unused; what breaks off behind it does not.
"""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Annotated, Final

import msgspec
import structlog
from aiohttp import web

from services.storage.errors import LinkEnded, LinkInvalid, LinksOff
from services.storage.handlers import FILES, OPENINGS, explains_failures, send
from services.storage.link_tokens import LONGEST_NAME, BadToken, LinkTerms, LinkTokens
from services.storage.settings import Settings
from services.storage.single_use import SingleUse
from shared.errors import InvalidRequest
from shared.identity import principal_of, public
from shared.proxies import PublicUrl
from shared.times import rfc3339
from shared.web import json_response, small_body

__all__ = [
    "LINKS",
    "LONGEST_S",
    "SINGLE_USE",
    "LinkRequest",
    "Links",
    "MadeLink",
    "add_link_routes",
]

log = structlog.stdlib.get_logger(__name__)

LONGEST_S: Final = 7 * 24 * 3600
_MAX_BODY: Final = 4096


class LinkRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a request for a link."""

    expires_in: Annotated[
        int, msgspec.Meta(ge=1, le=LONGEST_S, description="Seconds for which it is good")
    ] = 3600
    single_use: Annotated[
        bool, msgspec.Meta(description="It ends with the first answer that has bytes")
    ] = False
    filename: Annotated[
        str,
        msgspec.Meta(
            max_length=LONGEST_NAME, description="To save the file under; empty: its own"
        ),
    ] = ""


class MadeLink(msgspec.Struct, frozen=True, kw_only=True):
    """A link."""

    url: Annotated[str, msgspec.Meta(description="Whoever has it gets the file")]
    expires_at: Annotated[
        str,
        msgspec.Meta(
            description="When it ends (RFC 3339)", extra_json_schema={"format": "date-time"}
        ),
    ]
    single_use: Annotated[bool, msgspec.Meta(description="Whether it is good once only")]


class Links:
    """Makes and reads links.

    Args:
        settings: Hold the secrets. Without any there are no links; unless everybody is the
            local user: then their secret is made up, and they end with the process.

    """

    def __init__(self, settings: Settings) -> None:
        keys = [one.encode() for one in settings.link_secrets]
        if not keys and settings.auth_mode == "open":
            keys = [secrets.token_bytes(32)]
            log.info("links_end_with_the_process", setting="LINK_SECRETS")
        self._tokens: Final = LinkTokens(keys) if keys else None
        self._base: Final = PublicUrl(settings.public_url, settings.trusted_proxies)

    def make(self, file_id: str, terms: LinkTerms, request: web.Request) -> str:
        """Return the URL of a new link, as whoever asks for it reaches this service.

        Raises:
            LinksOff: There is no secret to sign it with.

        """
        if self._tokens is None:
            raise LinksOff("No links are made here: LINK_SECRETS is not set.")
        base = self._base.of(
            headers=request.headers, scheme=request.scheme, peer=request.remote
        )
        path = f"/api/v1/storage/{file_id}/shared"
        return f"{base}{path}?link={self._tokens.make(file_id, terms)}"

    def read(self, file_id: str, token: str) -> LinkTerms:
        """Return what a link allows.

        Raises:
            LinkInvalid: It was not made here for this file.
            LinkEnded: Its time is over.

        """
        try:
            if self._tokens is None:
                raise BadToken
            terms = self._tokens.read(file_id, token)
        except BadToken:
            log.info("link_refused")
            raise LinkInvalid("This link is not good, or not all of it was copied.") from None
        if terms.expires_at <= time.time():
            raise LinkEnded("This link has expired.")
        return terms


LINKS: Final = web.AppKey("links", Links)
SINGLE_USE: Final = web.AppKey("single_use", SingleUse)

_decoder: Final = msgspec.json.Decoder(LinkRequest)


def add_link_routes(router: web.UrlDispatcher) -> None:
    """Register the endpoints."""
    path = "/api/v1/storage/{file_id}"
    router.add_post(f"{path}/links", make_link)
    router.add_delete(f"{path}/links", revoke_links)
    router.add_get(f"{path}/shared", follow_link)


@explains_failures
async def make_link(request: web.Request) -> web.StreamResponse:
    """POST: a link to the caller's file."""
    file_id = request.match_info["file_id"]
    stored = await request.app[FILES].find(file_id, principal_of(request))
    asked = await _body_of(request)
    terms = LinkTerms(
        generation=stored.sidecar.link_generation,
        expires_at=int(time.time()) + asked.expires_in,
        single_use=asked.single_use,
        filename=asked.filename,
    )
    url = request.app[LINKS].make(file_id, terms, request)
    made = MadeLink(
        url=url, expires_at=rfc3339(terms.expires_at * 1000), single_use=terms.single_use
    )
    return json_response(made, status=201, headers={"Cache-Control": "no-store"})


async def _body_of(request: web.Request) -> LinkRequest:
    """Return what the body asks for; without a body, a plain link.

    Raises:
        InvalidRequest: It is something else.
        PayloadTooLarge: It is too large for what it may say.

    """
    body = await small_body(request, _MAX_BODY)
    try:
        asked = _decoder.decode(body) if body else LinkRequest()
        size = len(asked.filename.encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidRequest(
            'The body must be JSON such as {"expires_in":3600}, with 1 to '
            f"{LONGEST_S} seconds, and may have single_use and filename."
        ) from None
    if size > LONGEST_NAME:
        raise InvalidRequest(f"A file name may have {LONGEST_NAME} bytes.")
    return asked


@explains_failures
async def revoke_links(request: web.Request) -> web.StreamResponse:
    """DELETE: 204 once no link to the file is good that was made until now."""
    file_id = request.match_info["file_id"]
    await request.app[FILES].revoke_links(file_id, principal_of(request))
    return web.Response(status=204)


@public
@explains_failures
async def follow_link(request: web.Request) -> web.StreamResponse:
    """GET and HEAD: the file behind a link, as its owner would get it."""
    file_id = request.match_info["file_id"]
    terms = request.app[LINKS].read(file_id, request.query.get("link", ""))
    stored = await request.app[FILES].find_linked(file_id)
    if stored.sidecar.link_generation != terms.generation:
        raise LinkEnded("This link has been revoked.", error_code="LINK_REVOKED")
    claim = None
    if terms.single_use:
        if await request.app[SINGLE_USE].is_used(terms.nonce):
            raise _used()
        claim = partial(_claim, request, terms)
    file = await request.app[OPENINGS].open_found(stored)
    return await send(
        request, file, filename=terms.filename, ends_at=terms.expires_at, claim=claim
    )


async def _claim(request: web.Request, terms: LinkTerms) -> None:
    """Use a link, for a client that is still there.

    Raises:
        LinkEnded: It has been used.
        ConnectionError: The client has gone; it may come again.

    """
    if request.transport is None or request.transport.is_closing():
        raise ConnectionResetError
    if not await request.app[SINGLE_USE].claim(terms.nonce, terms.expires_at):
        raise _used()


def _used() -> LinkEnded:
    return LinkEnded("This link was good once, and has been used.", error_code="LINK_USED")
