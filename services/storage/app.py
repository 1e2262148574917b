"""Assembles storage. Opens nothing before the application starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext

from aiohttp import web

from services.storage import api
from services.storage.files import Files
from services.storage.handlers import FILES, OPENINGS, SETTINGS, add_storage_routes
from services.storage.list_handlers import LISTING, RECORDS, add_list_routes
from services.storage.listing import Listing
from services.storage.openings import Openings
from services.storage.rebuilding import rebuild_when_lost
from services.storage.records import Records
from services.storage.registering import GROUP, Registrar
from services.storage.settings import Settings
from shared.api_routes import API
from shared.blobs.opening import make_leases, make_store
from shared.lifecycle import background
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.serve import HEALTH, new_application
from shared.stream_group import StreamGroup
from shared.streams import connect, event_stream

__all__ = ["create_app", "install"]


def create_app(settings: Settings) -> web.Application:
    """Return storage as an application of its own."""
    app = new_application(settings)
    install(app, settings)
    return app


def install(app: web.Application, settings: Settings) -> None:
    """Add storage to an application.

    Raises:
        StartupError: The data folder cannot be written to.

    """
    app[SETTINGS] = settings
    leases = make_leases(settings)
    store = make_store(settings, leases=leases)

    async def run(app: web.Application) -> AsyncIterator[None]:
        await store.open()
        url, partitions = settings.redis_url or "", settings.event_partitions
        redis, grouping = connect(url), connect(url)
        publisher = Publisher(
            redis,
            partitions=partitions,
            interval_s=settings.progress_update_interval,
        )
        outbox = Outbox(store, publisher, redis, recent_s=float(settings.progress_ttl_seconds))
        app[FILES] = Files(store, outbox)
        records = app[RECORDS] = Records(redis)
        app[LISTING] = Listing(records)
        registrar = Registrar(records, store, outbox)
        streams = [event_stream(partition) for partition in range(partitions)]
        group = StreamGroup(grouping, group=GROUP, streams=streams, handle=registrar.handle)
        app[OPENINGS] = Openings(app[FILES], store)
        app[HEALTH].can_serve["storage.store"] = store.is_writable
        app[HEALTH].degraded["storage.redis"] = lambda: publisher.degraded
        if leases is not None:
            app[HEALTH].degraded["storage.leases"] = lambda: leases.away
        async with (
            leases.running() if leases else nullcontext(),
            background("publisher", publisher.run()),
            background("catalogue", group.run()),
            background("registrar", registrar.run()),
            background("rebuilding", rebuild_when_lost(redis, store, records)),
        ):
            yield
        await publisher.drain(timeout_s=2.0)
        await outbox.close()
        await redis.aclose()
        await grouping.aclose()
        await store.close()

    app.cleanup_ctx.append(run)
    add_storage_routes(app.router)
    add_list_routes(app.router)
    app[API].add(*api.SECTIONS)
