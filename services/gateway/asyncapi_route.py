"""Serves the AsyncAPI document, to anyone: it tells nothing that depends on who asks."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import msgspec
from aiohttp import web

from services.gateway.asyncapi import document
from services.gateway.dialects import Dialect
from shared.api_routes import JSON_HEADERS, serving

__all__ = ["add_asyncapi_route"]


def add_asyncapi_route(router: web.UrlDispatcher, dialects: Iterable[Dialect]) -> None:
    """Register it; it is made once, when it is first asked for."""

    @functools.cache
    def encoded() -> bytes:
        return msgspec.json.encode(document(dialects))

    router.add_get("/asyncapi.json", serving(encoded, JSON_HEADERS))
