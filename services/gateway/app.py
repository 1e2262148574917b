"""Assembles the gateway. Opens nothing before the application starts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from services.gateway import api, dialects
from services.gateway.admission import Admission
from services.gateway.asyncapi_route import add_asyncapi_route
from services.gateway.canary import Canary
from services.gateway.cleaning import Cleaner, lock_s
from services.gateway.dismissal import Dismissals
from services.gateway.event_stream import add_event_stream_route
from services.gateway.figures import watch_loop
from services.gateway.internal import create_reports_application
from services.gateway.keys import Keys
from services.gateway.listing import Listing
from services.gateway.projection import Projection
from services.gateway.recording import RecordingGroup
from services.gateway.relay import Relay
from services.gateway.reporting import Reporting
from services.gateway.rest import DISMISSALS, KEPT_S, LISTING, RELAY, add_rest_routes
from services.gateway.sessions_index import SessionsIndex
from services.gateway.settings import Settings, most_of_user
from services.gateway.sockets import SOCKETS, Sockets, add_socket_routes
from services.gateway.tickets import OFFICE, TicketOffice, add_ticket_route
from services.gateway.upkeep import CLEANER, INDEX, add_upkeep_routes
from shared.api_routes import API
from shared.identity import TICKETS
from shared.lifecycle import background
from shared.probes import Health
from shared.publisher import Publisher
from shared.redis_lock import RedisLock
from shared.serve import AUTHENTICATOR, HEALTH, INTERNAL, new_application
from shared.streams import connect

__all__ = ["create_app", "install"]

_REPORTING: Final = web.AppKey("reporting", Reporting)
_ANSWER_S: Final = 1.0
"""A client who asks waits no longer than this for a Redis that hangs (faults, item 11)."""
_DRAIN_S: Final = 1.0
"""How long the last progress of jobs is worth waiting for at the end."""


def create_app(settings: Settings) -> web.Application:
    """Return the gateway as an application of its own."""
    app = new_application(settings)
    install(app, settings)
    return app


def install(app: web.Application, settings: Settings) -> None:
    """Add the gateway to an application."""

    async def run(app: web.Application) -> AsyncIterator[None]:
        url = settings.redis_url or ""
        redis, tailing, grouping = connect(url, timeout_s=_ANSWER_S), connect(url), connect(url)
        projection = Projection(
            redis, prefix=settings.progress_prefix, ttl_s=settings.progress_ttl_seconds
        )
        canary = Canary(redis, prefix=settings.progress_prefix)
        relay = Relay(tailing, projection, canary, partitions=settings.event_partitions)
        tail = relay.reading.tail
        group = RecordingGroup(grouping, projection, partitions=settings.event_partitions)
        keys, ttl_s = Keys(settings.progress_prefix), settings.progress_ttl_seconds
        index = SessionsIndex(redis, keys, ttl_s=ttl_s)
        dismissals = Dismissals(redis, keys, index)
        cleaner = Cleaner(
            index, projection, dismissals, ttl_s=ttl_s, batch=settings.progress_batch_size
        )
        every_s = settings.progress_cleanup_interval
        lock = RedisLock(redis, keys.cleaner, ttl_s=lock_s(every_s))
        app[LISTING] = Listing(redis, keys, relay)
        app[DISMISSALS], app[INDEX], app[CLEANER] = dismissals, index, cleaner
        app[KEPT_S] = ttl_s
        await group.prepare()
        await relay.reading.start()
        admission = Admission(
            redis,
            keys,
            most=settings.websocket_max_connections_total,
            most_of_user=most_of_user(settings),
        )
        sockets = await Sockets(relay, app[AUTHENTICATOR], admission, settings).prepared()
        publisher = Publisher(
            redis,
            partitions=settings.event_partitions,
            interval_s=settings.progress_update_interval,
        )
        app[RELAY] = relay
        app[_REPORTING] = Reporting(
            redis, relay, projection, publisher, partitions=settings.event_partitions
        )
        app[SOCKETS] = sockets
        app[OFFICE] = app[TICKETS] = TicketOffice(redis, prefix=settings.progress_prefix)
        _tell_health(app[HEALTH], sockets, group, lambda: not tail.connected or canary.is_late)
        async with (
            background("tail", tail.run()),
            background("interest", relay.reading.run()),
            background("canary", canary.run(tail)),
            background("projection", group.lifecycle.run()),
            background("positions", group.positions.run()),
            background("repair", relay.repair()),
            background("keepalive", sockets.keepalive.run()),
            background("lifetimes", sockets.lifetimes.run()),
            background("admission", admission.run()),
            background("loop", watch_loop()),
            background("cleaner", cleaner.run(lock, every_s=every_s)),
            background("reports", publisher.run()),
            background("heartbeat", sockets.heartbeat.run()),
        ):
            yield
        await publisher.drain(_DRAIN_S)
        await admission.leave()
        for client in (redis, tailing, grouping):
            await client.aclose()

    def reporting() -> Reporting | None:
        return None if app[HEALTH].draining else app[_REPORTING]

    async def say_goodbye(app: web.Application) -> None:
        await app[SOCKETS].close_all()

    app.cleanup_ctx.append(run)
    app.on_shutdown.append(say_goodbye)
    if settings.websocket_enabled:
        add_socket_routes(app.router, dialects.ALL)
        add_event_stream_route(app.router)
        app[API].add(api.SOCKETS)
    add_asyncapi_route(app.router, dialects.ALL if settings.websocket_enabled else ())
    app[API].add(api.ASYNCAPI)
    add_upkeep_routes(app.router)
    app[INTERNAL]["/internal"] = create_reports_application(settings, reporting)
    add_rest_routes(app.router)
    app[API].add(api.PROGRESS)
    add_ticket_route(app.router)
    app[API].add(api.TICKETS)


def _tell_health(
    health: Health, sockets: Sockets, group: RecordingGroup, is_cut_off: Callable[[], bool]
) -> None:
    health.farewells.append(lambda: sockets.close_all(window_s=sockets.window_s))
    health.can_serve["gateway.sockets"] = lambda: not sockets.admission.is_full
    health.degraded["gateway.redis"] = is_cut_off
    health.degraded["gateway.partitions"] = lambda: bool(group.unread)
