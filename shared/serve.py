"""Runs a service: settings, logs, listeners, signals, and an orderly end.

Whatever keeps a service from starting is told in one line on stderr, with exit code 2.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
import structlog
from aiohttp import web
from redis.exceptions import ResponseError

from shared import lifecycle, logs
from shared.api_routes import add_api_routes
from shared.authenticator import Authenticator, IdentitySettings, authenticator
from shared.cors import CorsSettings, answer_preflights, check_origins, share_responses
from shared.errors import StartupError
from shared.identity import identify
from shared.loopback import refuse_foreign_hosts, require_loopback
from shared.probes import Health, create_internal_application
from shared.proxies import TrustedProxies
from shared.rate_limit import RateLimits
from shared.redis_urls import fails_over
from shared.settings import CommonSettings, bind_address, load, masked
from shared.streams import REDIS_FAILURES, connect
from shared.token_bucket import limit_of
from shared.web import create_application

__all__ = [
    "AUTHENTICATOR",
    "CORS",
    "HEALTH",
    "INTERNAL",
    "Command",
    "check_redis",
    "main",
    "new_application",
    "run",
    "serve",
]

log = structlog.stdlib.get_logger(__name__)

AUTHENTICATOR: Final = web.AppKey("authenticator", Authenticator)
CORS: Final = web.AppKey("cors", CorsSettings)
HEALTH: Final = web.AppKey("health", Health)
INTERNAL: Final = web.AppKey("internal", dict[str, web.Application])
"""What services add to the internal listener, by the prefix of its paths."""

_EXPOSED: Final = (
    *("X-Request-ID", "Retry-After", "ETag", "Content-Range", "Content-Disposition"),
    *("Accept-Ranges", "Last-Modified", "Link", "RateLimit", "RateLimit-Policy"),
)

_IDLE_S: Final = 75.0
"""How long a connection may stay without a whole request head. Longer than an ingress keeps
an idle connection (60 s), and not aiohttp's hour, which half a head could hold (item 177)."""

_LINGER_S: Final = 2.0
"""How long the rest of a body that was refused is read and thrown away. Closing at once could
cost the client its answer, but nothing else ends this: the process waits for it at its end."""

S = TypeVar("S", bound=CommonSettings)


def new_application(settings: CommonSettings) -> web.Application:
    """Return an application that knows who is calling, with no routes but its description.

    Raises:
        StartupError: The settings contradict each other.

    """
    cors = CorsSettings(settings.cors_allowed_origins)
    check_origins(cors)
    auth = authenticator(msgspec.convert(settings, IdentitySettings, from_attributes=True))
    local = [refuse_foreign_hosts] if settings.auth_mode == "open" else []
    limits = _rate_limits(settings)
    around = [limits.refused_logins] if limits else []
    behind = [limits.requests] if limits else []
    app = create_application(*local, answer_preflights(), *around, identify(auth), *behind)
    if limits:
        limits.add_to(app)
    app.on_response_prepare.append(share_responses(cors, also_expose=_EXPOSED))
    app[AUTHENTICATOR] = auth
    app[CORS] = cors
    app[HEALTH] = Health()
    app[INTERNAL] = {}
    add_api_routes(app)
    return app


def _rate_limits(settings: CommonSettings) -> RateLimits | None:
    proxies = TrustedProxies(settings.trusted_proxies)
    enabled = settings.rate_limit_enabled
    if enabled is None:  # where everyone is one user, a limit for each is one for all
        enabled = settings.auth_mode == "required"
    if not enabled:
        return None
    limits = {
        "create": limit_of(settings.rate_limit_create),
        "change": limit_of(settings.rate_limit_change),
        "read": limit_of(settings.rate_limit_read),
        "login": limit_of(settings.rate_limit_login),
    }
    return RateLimits(limits, proxies, settings.redis_url)


async def serve(
    app: web.Application, settings: CommonSettings, *, ready: Callable[[], None] | None = None
) -> None:
    """Listen until SIGTERM or SIGINT, then end what runs; a second signal ends at once.

    Raises:
        StartupError: A listener cannot be had, or something behind the service is missing.

    """
    host, _ = bind_address("PUBLIC_BIND", settings.public_bind)
    require_loopback(settings.auth_mode, host)
    await check_redis(settings.redis_url)
    stop = _stop_on_signals()
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=_IDLE_S,
        auto_decompress=False,  # a gzip bomb must stay small (security item 9)
        handle_signals=False,
        lingering_time=_LINGER_S,
        shutdown_timeout=settings.shutdown_timeout,
    )
    inside = create_internal_application(app[HEALTH])
    for prefix, part in app[INTERNAL].items():
        inside.add_subapp(prefix, part)
    internal = web.AppRunner(
        inside,
        access_log=None,
        keepalive_timeout=_IDLE_S,
        auto_decompress=False,
        lingering_time=_LINGER_S,
        shutdown_timeout=1.0,
    )
    try:
        await _set_up(runner, settings.redis_url or "")
        await _listen(runner, "PUBLIC_BIND", settings.public_bind)
        if settings.internal_bind != "off":
            await internal.setup()
            await _listen(internal, "INTERNAL_BIND", settings.internal_bind)
        log.info("listening", public=settings.public_bind, internal=settings.internal_bind)
        if ready is not None:
            ready()
        await stop.wait()
        log.info("stopping")
        app[HEALTH].draining = True
        await _say_farewell(app[HEALTH], settings.shutdown_timeout)
    finally:
        await runner.cleanup()
        await internal.cleanup()
    log.info("stopped")


async def _say_farewell(health: Health, limit_s: float) -> None:
    """Let the service say goodbye; who comes meanwhile is still answered, not turned away."""
    try:
        async with asyncio.timeout(limit_s):
            await asyncio.gather(*(one() for one in health.farewells))
    except TimeoutError:
        log.warning("farewell_cut", limit_s=limit_s)


async def _set_up(runner: web.AppRunner, redis_url: str) -> None:
    try:
        await runner.setup()
    except REDIS_FAILURES as exc:
        raise _unusable_redis(redis_url, exc) from exc


def _masked(url: str) -> str:
    """Return a URL without what might be a password, wherever in it."""
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r"//[^@/]*@", "//***@", url))


def _unusable_redis(url: str, exc: BaseException) -> StartupError:
    reason = (str(exc) or type(exc).__name__).splitlines()[0]
    if isinstance(exc, ResponseError):  # a wrong password, a Sentinel that is none
        return StartupError(f"REDIS_URL={_masked(url)}: it cannot be used ({reason})")
    return StartupError(
        f"REDIS_URL={_masked(url)}: no Redis answers there ({reason}): "
        "start it or correct the URL"
    )


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


async def _listen(runner: web.AppRunner, name: str, bind: str) -> None:
    host, port = bind_address(name, bind)
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except (OSError, UnicodeError) as exc:  # UnicodeError: the host cannot be a name
        if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
            reason = "the port is in use: stop the program that has it"
        else:
            reason = f"cannot listen there ({getattr(exc, 'strerror', None) or exc})"
        raise StartupError(f"{name}={bind}: {reason} or set {name}=host:port") from exc


async def check_redis(url: str | None) -> None:
    """Return if a Redis answers there.

    Raises:
        StartupError: None does; says what to do.

    """
    if not url:
        raise StartupError(
            "REDIS_URL is not set: set it to the Redis that all services share, "
            "or run `python -m services`, which starts its own"
        )
    shown = _masked(url)
    try:
        redis = connect(url)
    except (TypeError, ValueError) as exc:
        raise StartupError(f"REDIS_URL={shown}: {exc}") from exc
    try:
        is_node = (await redis.info("cluster")).get("cluster_enabled")
    except (TypeError, ValueError) as exc:  # an option that redis-py does not know, or no host
        raise StartupError(f"REDIS_URL={shown}: it cannot be used ({exc})") from exc
    except REDIS_FAILURES as exc:
        raise _unusable_redis(url, exc) from exc
    finally:
        await redis.aclose()
    if is_node and not fails_over(url):
        raise StartupError(
            f"REDIS_URL={shown}: it is a node of a cluster: write redis+cluster://"
        )


def run(job: Coroutine[Any, Any, int | None]) -> None:
    """Run ``job`` to its end on uvloop where it is installed; exit 2 if it cannot start.

    What it returns is the exit code.
    """
    try:
        import uvloop  # noqa: PLC0415 - optional

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            code = runner.run(job)
        if code or lifecycle.has_died():
            sys.exit(code or 1)  # an orderly end, but one that a supervisor must see
    except StartupError as exc:
        fail(exc)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error: StartupError) -> None:
    """End the process with one line that says what is wrong."""
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    sys.exit(2)


class Command(NamedTuple, Generic[S]):
    """What ``python -m services.<name> <word>`` does instead of serving."""

    job: Callable[[S, Collection[str]], Coroutine[Any, Any, int]]
    """Takes the settings and the flags that were given; returns the exit code. Its stdout is
    its own: logs go to stderr."""
    flags: tuple[str, ...] = ()
    """Those that it knows."""


def main(
    name: str,
    kind: type[S],
    create_app: Callable[[S], web.Application],
    *,
    commands: Mapping[str, Command[S]] = MappingProxyType({}),
    argv: list[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Be ``python -m services.<name>``: serve, do a command, or print the settings and exit."""
    arguments = sys.argv[1:] if argv is None else argv
    job: Coroutine[Any, Any, int | None]
    try:
        settings = load(kind, os.environ if environ is None else environ)
        if arguments == ["--print-config"]:
            print_settings(settings)
            return
        command, flags = _command(arguments, commands)
        stream = sys.stdout if command is None else sys.stderr
        logs.configure(settings.log_level, settings.log_format, service=name, stream=stream)
        if command is None:
            job = serve(create_app(settings), settings)
        else:
            job = command.job(settings, flags)
    except StartupError as exc:
        fail(exc)
        return
    run(job)


def _command(
    arguments: list[str], commands: Mapping[str, Command[S]]
) -> tuple[Command[S] | None, list[str]]:
    """Return the command that is asked for, and its flags.

    Raises:
        StartupError: The arguments are none that are known.

    """
    if not arguments:
        return None, []
    command, flags = commands.get(arguments[0]), arguments[1:]
    if command is not None and set(flags) <= set(command.flags):
        return command, flags
    known = ["--print-config", *(" ".join([w, *c.flags]) for w, c in commands.items())]
    raise StartupError(
        f"unknown arguments {arguments}: settings come from the environment; "
        f"known are: {', '.join(known)}"
    )


def print_settings(*settings: CommonSettings) -> None:
    """Write the effective settings to stdout, one a line, each once, secrets masked."""
    shown: dict[str, str] = {}
    for one in settings:
        shown |= masked(one)
    for variable, value in shown.items():
        sys.stdout.write(f"{variable}={value}\n")
