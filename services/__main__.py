"""``python -m services``: the whole system in one process on one port, for trying it out.

Nothing needs to be installed or set: an embedded Redis and a folder for the blobs come along.
The services still meet only on the streams; in production each one is a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from aiohttp import web

import services.gateway.app
import services.gateway.settings
import services.ingest.app
import services.ingest.settings
import services.storage.app
import services.storage.settings
from shared import logs
from shared.errors import StartupError
from shared.serve import fail, new_application, print_settings, run, serve
from shared.settings import load

DEFAULTS: Final = {
    "PUBLIC_BIND": "127.0.0.1:8080",
    "INTERNAL_BIND": "127.0.0.1:9090",
    "AUTH_MODE": "open",
    "WEBSOCKET_DRAIN_WINDOW": "0",
}

_BANNER: Final = """\
Uploads are served on {url} (Ctrl-C stops). Try, in another terminal:

  # upload a file with any tus 1.0.0 client at {url}/api/v1/uploads, or with curl:
  curl --data-binary @README.md {url}/api/v1/uploads
  curl -F file=@README.md {url}/v1/upload/file

  # then, with the upload_id of the answer:
  curl {url}/v1/dashboard/upload/progress/ID   # progress; live: {ws}/api/v1/ws/ID
  curl -O -J {url}/api/v1/storage/ID           # download
  # everything else: {url}/docs
"""


def main() -> None:
    """Serve everything, or print the settings and exit."""
    try:
        if sys.argv[1:] == ["--print-config"]:
            _print_all(os.environ)
            return
        if sys.argv[1:]:
            raise StartupError(
                f"unknown arguments {sys.argv[1:]}: settings come from the environment; "
                "--print-config shows them"
            )
        with _redis(os.environ) as url:
            _serve_all({**os.environ, "REDIS_URL": url})
    except StartupError as exc:
        fail(exc)
    except KeyboardInterrupt:  # while Redis was starting or stopping
        sys.exit(130)


@contextlib.contextmanager
def _redis(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the URL of the Redis to use: the one that is set, else one of our own."""
    given = environ.get("REDIS_URL")
    if given:
        yield given
        return
    from services.embedded_redis import embedded_redis  # noqa: PLC0415 - not on Windows

    data_dir = load(services.ingest.settings.Settings, environ, DEFAULTS).data_dir
    with embedded_redis(data_dir) as url:
        yield url


def _serve_all(environ: Mapping[str, str]) -> None:
    ingest = load(services.ingest.settings.Settings, environ, DEFAULTS)
    gateway = load(services.gateway.settings.Settings, environ, DEFAULTS)
    storage = load(services.storage.settings.Settings, environ, DEFAULTS)
    logs.configure(ingest.log_level, ingest.log_format, service="all")
    app: web.Application = new_application(ingest)
    services.ingest.app.install(app, ingest)
    services.gateway.app.install(app, gateway)
    services.storage.app.install(app, storage)

    def greet() -> None:
        url = f"http://{ingest.public_bind}"
        ws = f"ws://{ingest.public_bind}"
        sys.stdout.write(_BANNER.format(url=url, ws=ws))
        sys.stdout.flush()

    run(serve(app, ingest, ready=greet))


def _print_all(environ: Mapping[str, str]) -> None:
    """Write the settings of all services, each variable once."""
    print_settings(
        *(
            load(module.Settings, environ, DEFAULTS)
            for module in (
                services.ingest.settings,
                services.gateway.settings,
                services.storage.settings,
            )
        )
    )


if __name__ == "__main__":
    main()
