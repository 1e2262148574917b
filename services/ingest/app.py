"""Assembles ingest. Opens nothing before the application starts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext

from aiohttp import web

from services.ingest.arrivals import Arrivals
from services.ingest.clamd import Clamd
from services.ingest.content import Content
from services.ingest.form_handlers import add_form_routes, provide_forms
from services.ingest.handlers import JOINS, LOCATIONS, SETTINGS, UPLOADS
from services.ingest.joining import Joins
from services.ingest.location import Locations
from services.ingest.progress import ProgressReporter
from services.ingest.records import GROUP, SessionRecords
from services.ingest.routes import add_upload_routes, name_protocol
from services.ingest.settings import Settings
from services.ingest.status import add_status_route
from services.ingest.trimming import trim_events
from services.ingest.uploads import Uploads
from services.ingest.writers import Writers
from shared.blobs.opening import make_leases, make_store
from shared.lifecycle import background
from shared.outbox import Outbox
from shared.publisher import Publisher
from shared.serve import HEALTH, new_application
from shared.sidecar import Sidecar
from shared.stream_group import GroupEntry, StreamGroup
from shared.streams import connect, event_stream

__all__ = ["create_app", "install"]


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
    leases = make_leases(settings)
    store = make_store(settings, fsync=settings.upload_fsync, leases=leases)
    writers = Writers(store, leases)
    clamd = None
    if settings.clamd_url:
        clamd = Clamd(settings.clamd_url, timeout_s=settings.clamd_timeout)

    async def run(app: web.Application) -> AsyncIterator[None]:
        await store.open()
        redis, grouping = (connect(settings.redis_url or "") for _ in range(2))
        publisher = Publisher(
            redis,
            partitions=settings.event_partitions,
            interval_s=settings.progress_update_interval,
        )
        records = SessionRecords(redis, ttl_s=settings.upload_session_timeout_hours * 3600)
        content = Content(settings, store, redis, clamd)

        def recall(sidecar: Sidecar) -> None:
            records.recall(sidecar)
            content.dedupe.remember(sidecar)

        outbox = Outbox(
            store,
            publisher,
            redis,
            recent_s=float(settings.progress_ttl_seconds),
            on_republish=recall,
        )
        progress = ProgressReporter(publisher, records)

        async def forget_deleted(batch: Sequence[GroupEntry]) -> None:
            await records.handle(batch)
            await content.dedupe.handle(batch)

        group = StreamGroup(
            grouping,
            group=GROUP,
            streams=[event_stream(p) for p in range(settings.event_partitions)],
            handle=forget_deleted,
        )
        completion = content.completion(outbox, progress)
        arrivals = Arrivals()
        uploads = app[UPLOADS] = Uploads(
            store=store,
            writers=writers,
            outbox=outbox,
            progress=progress,
            completion=completion,
            arrivals=arrivals,
            inspection=content.inspection,
            hashing=content.hashing,
            dedupe=content.dedupe,
            settings=settings,
        )
        joins = app[JOINS] = Joins(
            uploads=uploads,
            completion=completion,
            arrivals=arrivals,
            max_size=settings.upload_max_file_size,
        )
        provide_forms(app, redis=redis, progress=progress, settings=settings)
        app[HEALTH].can_serve["ingest.store"] = store.is_writable
        app[HEALTH].degraded["ingest.redis"] = lambda: publisher.degraded
        if leases is not None:
            app[HEALTH].degraded["ingest.leases"] = lambda: leases.away
        async with (
            leases.running() if leases else nullcontext(),
            background("publisher", publisher.run()),
            background("outbox", outbox.watch()),
            background("handover", writers.listen()),
            background("records", records.run()),
            background("deletions", group.run()),
            background("joins", joins.run()),
            background("trimming", trim_events(redis, settings.event_partitions)),
            content.at_work(writers, completion),
        ):
            yield
            await joins.close()
        await publisher.drain(timeout_s=2.0)
        await outbox.close()
        await redis.aclose()
        await grouping.aclose()
        await store.close()

    async def let_go(_: web.Application) -> None:
        writers.let_go()

    app.cleanup_ctx.append(run)
    app.on_shutdown.append(let_go)
    app.on_response_prepare.append(name_protocol)
    add_upload_routes(app.router)
    add_form_routes(app)
    add_status_route(app.router)
