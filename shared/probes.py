"""The internal listener: is the process alive, can it serve, how does it fare.

For the platform around the service only; it must never be reachable from outside.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import prometheus_client
from aiohttp import web

from shared.web import json_response

__all__ = ["Health", "create_internal_application"]


class Health:
    """What the process knows of its own state."""

    def __init__(self) -> None:
        self.draining = False
        """Set at shutdown: new work should go elsewhere."""
        self.farewells: Final[list[Callable[[], Awaitable[None]]]] = []
        """What then takes its time, while the listeners still answer; cut at
        ``SHUTDOWN_TIMEOUT``."""
        self.can_serve: Final[dict[str, Callable[[], bool]]] = {}
        """Without these the service's own path does not work: unready when one fails."""
        self.degraded: Final[dict[str, Callable[[], bool]]] = {}
        """Troubles that the service rides out, such as an absent Redis: told, not unready.

        Otherwise a blip of Redis would take every process out of service at once.
        """


def create_internal_application(health: Health) -> web.Application:
    """Return the application with ``/healthz``, ``/readyz`` and ``/metrics``."""

    async def healthz(_: web.Request) -> web.Response:
        """Answer that the loop turns."""
        return json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        """Answer whether the service can serve its own path."""
        failed = [name for name, check in health.can_serve.items() if not check()]
        degraded = [name for name, check in health.degraded.items() if check()]
        ready = not failed and not health.draining
        body = {
            "status": "ready" if ready else "unready",
            "draining": health.draining,
            "failed": failed,
            "degraded": degraded,
        }
        return json_response(body, status=200 if ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        """Answer with the Prometheus text format."""
        return web.Response(
            body=prometheus_client.generate_latest(),
            headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST},
        )

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app
