"""The published protocols: each a way to read clients' messages and to write events.

Adding one takes a module here and a line in ``ALL``.
"""

from __future__ import annotations

from typing import Final

from services.gateway.dialects.dashboard import Dashboard
from services.gateway.dialects.events import EventsJson, EventsMsgpack
from services.gateway.dialects.jobs import Jobs
from services.gateway.dialects.media import Media
from services.gateway.dialects.pipeline import Pipeline
from services.gateway.dialects.processing import Processing
from services.gateway.dialects.protocol import Dialect

__all__ = ["ALL", "Dialect"]

ALL: Final[tuple[Dialect, ...]] = (
    Dashboard(),
    Media(),
    Pipeline(),
    Processing(),
    Jobs(),
    EventsJson(),
    EventsMsgpack(),
)
