"""The application of ingest. Opens nothing before it starts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog
from aiohttp import web

from services.ingest import api
from services.ingest.assembly import Assembly, Foundation
from services.ingest.direct_body import DIRECT, why_not
from services.ingest.form_handlers import add_form_routes, provide_forms
from services.ingest.handlers import JOINS, LOCATIONS, SETTINGS, UPLOADS
from services.ingest.location import Locations
from services.ingest.routes import add_upload_routes, name_protocol
from services.ingest.settings import Settings
from services.ingest.status import add_status_route
from shared.api_routes import API
from shared.serve import HEALTH, new_application

__all__ = ["create_app", "install"]

log = structlog.stdlib.get_logger(__name__)

_DRAIN_S = 2.0


def create_app(settings: Settings) -> web.Application:
    """Return ingest as an application of its own."""
    app = new_application(settings)
    install(app, settings)
    return app


def install(app: web.Application, settings: Settings) -> None:
    """Add ingest to an application.

    Raises:
        StartupError: The data folder cannot be written to, or a setting is wrong.

    """
    app[SETTINGS] = settings
    app[LOCATIONS] = Locations(settings.public_url, settings.trusted_proxies)
    foundation = Foundation(settings)

    async def run(app: web.Application) -> AsyncIterator[None]:
        await foundation.store.open()
        app[DIRECT] = await may_read_directly(settings)
        parts = Assembly(foundation)
        app[UPLOADS], app[JOINS] = parts.uploads, parts.joins
        provide_forms(app, names=parts.names, progress=parts.progress, settings=settings)
        _report_health(app, foundation, parts)
        async with parts.publishing(drain_s=_DRAIN_S), parts.serving():
            yield
        await foundation.store.close()

    async def let_go(_: web.Application) -> None:
        foundation.writers.let_go()

    app.cleanup_ctx.append(run)
    app.on_shutdown.append(let_go)
    app.on_response_prepare.append(name_protocol)
    add_upload_routes(app.router)
    add_form_routes(app)
    add_status_route(app.router)
    app[API].add(*api.SECTIONS)


async def may_read_directly(settings: Settings) -> bool:
    if settings.upload_reader == "aiohttp":
        return False
    fault = await why_not()
    if fault is not None:
        log.warning("bodies_read_by_aiohttp", reason=fault)
    return fault is None


def _report_health(app: web.Application, foundation: Foundation, parts: Assembly) -> None:
    health, leases = app[HEALTH], foundation.leases
    health.can_serve["ingest.store"] = foundation.store.is_writable
    health.degraded["ingest.redis"] = lambda: parts.publisher.degraded
    health.degraded["ingest.disk"] = lambda: foundation.disk.is_full
    if leases is not None:
        health.degraded["ingest.leases"] = lambda: leases.away
