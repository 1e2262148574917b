"""nginx as a peer: one process that sends files with sendfile, no log, nothing of ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.processes import Server, free_port, started

__all__ = ["nginx", "why_no_nginx"]

_CONFIG: Final = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log /dev/null;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  sendfile on;
  keepalive_requests 1000000000;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    root {root};
  }}
}}
"""


def _program() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")


def why_no_nginx() -> str:
    """Return why nginx cannot run here; empty if it can."""
    return "" if _program() else "nginx was left out: it is not installed."


@contextlib.contextmanager
def nginx(root: Path, directory: Path) -> Iterator[Server]:
    """Serve the files below ``root``, with what it writes in ``directory``."""
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(_CONFIG.format(directory=directory, port=port, root=root))
    argv = [str(_program()), "-c", str(config), "-e", "/dev/null"]
    with started(argv, port, output=subprocess.DEVNULL) as server:
        yield server
