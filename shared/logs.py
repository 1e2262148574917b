"""Structured logs: JSON lines, or readable ones on a terminal; times are UTC."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog

__all__ = ["configure"]

_LIBRARY_LEVELS = {
    "aiohttp.access": logging.WARNING,  # shared.web writes its own line a request
    "aiohttp.server": logging.CRITICAL,  # a traceback for each malformed request (item 177)
    "aiohttp_jwt.middleware": logging.CRITICAL,  # a traceback for each bad token
    "asyncio": logging.WARNING,
}


def configure(
    level: str,
    form: Literal["auto", "json", "console"],
    *,
    service: str,
    stream: TextIO | None = None,
) -> None:
    """Set up structlog and the standard library's logging, once, at start."""
    stream = stream or sys.stdout
    console = form == "console" or (form == "auto" and stream.isatty())
    steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if console:
        renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            pad_event_to=28,
            exception_formatter=structlog.dev.plain_traceback,  # the default one shows locals
        )
    else:
        steps.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*steps, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=steps,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name, least in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(least)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)
