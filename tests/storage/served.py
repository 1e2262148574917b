"""Storage as it runs, on each kind of store, and nginx in front of it as a caching proxy."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.processes import RedisServer, ServiceProcess, free_port, running, wait_until
from tests.s3_servers import BUCKET, MotoServer

__all__ = ["Reply", "Served", "ask", "find_nginx", "proxied", "served"]

_NGINX: Final = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/cache keys_zone=files:1m;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      slice 64k;
      proxy_pass {upstream};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Range $slice_range;
      proxy_cache files;
      proxy_cache_key $uri$is_args$args$slice_range$http_authorization;
      proxy_cache_valid 200 206 1h;
      proxy_ignore_headers Cache-Control;
      add_header X-Cache $upstream_cache_status;
    }}
  }}
}}
"""


class Served(NamedTuple):
    """Where files can be uploaded and downloaded."""

    ingest: ServiceProcess
    storage: ServiceProcess

    def upload(self, content: bytes, content_type: str = "application/octet-stream") -> str:
        """Store a file; return its path."""
        link = http.client.HTTPConnection("127.0.0.1", self.ingest.port, timeout=30)
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(len(content)),
            "Content-Type": "application/offset+octet-stream",
        }
        if content_type:
            headers["Upload-Metadata"] = "filetype " + b64encode(content_type.encode()).decode()
        link.request("POST", "/api/v1/uploads", content, headers)
        answer = link.getresponse()
        assert answer.status == 201, answer.read()
        location = answer.headers["Location"]
        link.close()
        return f"/api/v1/storage/{location.rpartition('/')[2]}"


@contextmanager
def served(folder: Path, redis: RedisServer, s3: MotoServer | None) -> Iterator[Served]:
    """Run ingest and storage on a folder or on a bucket."""
    folder.mkdir(parents=True, exist_ok=True)
    env = {"REDIS_URL": redis.url, "DATA_DIR": str(folder / "data"), "LOG_LEVEL": "info"}
    if s3 is not None:
        env |= {
            "BLOB_STORE": f"s3://{BUCKET}/{folder.name}",
            "S3_ENDPOINT_URL": s3.url,
            "S3_ACCESS_KEY_ID": s3.access_key_id,
            "S3_SECRET_ACCESS_KEY": s3.secret_access_key,
            "S3_PART_SIZE": str(5 << 20),
        }
    one = Served(
        ServiceProcess("ingest", env, folder / "ingest.log"),
        ServiceProcess("storage", env, folder / "storage.log"),
    )
    with running(*one):
        yield one
    log = one.storage.log.read_text()
    assert "Traceback" not in log
    assert "request_failed" not in log


def find_nginx() -> str | None:
    """Return nginx's program, if it is installed."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")


@contextmanager
def proxied(folder: Path, upstream: str) -> Iterator[int]:
    """Run nginx in front of storage, with a cache of slices; yield its port."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, upstream=upstream))
    program = find_nginx()
    assert program is not None
    log = folder / "error.log"
    process = subprocess.Popen([program, "-c", str(config), "-e", str(log)])
    with ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until(lambda: _listens(port), "nginx answers", log.read_text)
        yield port


def _listens(port: int) -> bool:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        link.connect()
    except OSError:
        return False
    finally:
        link.close()
    return True


class Reply(NamedTuple):
    """An answer, with its body."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(
    link: http.client.HTTPConnection, path: str, headers: dict[str, str], method: str = "GET"
) -> Reply:
    """Ask on a connection that is kept."""
    link.request(method, path, headers=headers)
    answer = link.getresponse()
    return Reply(answer.status, answer.headers, answer.read())
