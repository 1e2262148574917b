"""Running services that generated requests are sent to, with uploads in every state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import jwt

from services.ingest.location import COLLECTION
from tests.ingest.evidence import tracebacks
from tests.ingest.tus_client import Tus, id_of
from tests.processes import RedisServer, ServiceProcess, running

__all__ = ["STATES", "System", "all_in_one", "separate"]

SECRET: Final = "a secret of the tests, long enough"
LIMITS: Final = {
    "UPLOAD_MAX_FILE_SIZE": "1000",
    "UPLOAD_IDLE_TIMEOUT": "2",
    "RATE_LIMIT_ENABLED": "false",
}


def token_of(user_id: str, *, scope: str = "") -> dict[str, str]:
    """Return the header of a caller."""
    claims = {"sub": user_id, "exp": time.time() + 3600, "scope": scope}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}


class System:
    """Services that have uploads of one user.

    Args:
        urls: Base URL by the first parts of paths; ``""`` for all others.
        user_id: Of the user.
        owner: Credentials of the user.
        others: Credentials, good and bad, of those who have no upload.

    """

    def __init__(
        self,
        urls: Mapping[str, str],
        user_id: str,
        owner: Mapping[str, str],
        others: tuple[Mapping[str, str], ...],
    ) -> None:
        self._urls: Final = urls
        self.user_id: Final = user_id
        self.owner: Final = owner
        self.callers: Final = (owner, owner, owner, *others)
        """Credentials to choose from; mostly those that get far."""
        port = int(urls[""].rpartition(":")[2])
        self._tus: Final = Tus(port, owner)
        self._made: Final[dict[str, str]] = {}

    def url(self, path: str) -> str:
        """Return the base URL of the service that has a path."""
        prefixes = [one for one in self._urls if path.startswith(one)]
        return self._urls[max(prefixes, key=len)]

    def upload(self, state: str, *, anew: bool) -> str:
        """Return the id of an upload in one of the ``STATES``; ``anew`` if it will change."""
        if anew:
            return id_of(STATES[state](self._tus))
        if state not in self._made:
            self._made[state] = self.upload(state, anew=True)
        return self._made[state]


def _half(tus: Tus) -> str:
    path = tus.create(10)
    assert tus.patch(path, 0, b"12345").status == 204
    return path


def _complete(tus: Tus) -> str:
    path = tus.create(5)
    assert tus.patch(path, 0, b"12345").status == 204
    return path


def _deleted(tus: Tus) -> str:
    path = tus.create(5)
    assert tus.delete(path).status == 204
    return path


def _half_ietf(tus: Tus) -> str:
    answer = tus.ask("POST", COLLECTION, {"Upload-Complete": "?0"}, b"12345")
    assert answer.status == 201
    return answer.headers["Location"]


STATES: Final[Mapping[str, Callable[[Tus], str]]] = {
    "new": lambda tus: tus.create(10),
    "deferred": lambda tus: tus.create(None),
    "half": _half,
    "half-ietf": _half_ietf,
    "complete": _complete,
    "deleted": _deleted,
}


@contextlib.contextmanager
def all_in_one(redis: RedisServer, folder: Path) -> Iterator[System]:
    """Run everything on one port, where everyone is the local user."""
    env = {"REDIS_URL": redis.url, "DATA_DIR": str(folder / "data"), **LIMITS}
    service = ServiceProcess("__main__", env, folder / "log")
    with running(service):
        yield System({"": service.url}, "local", {}, ())
        assert tracebacks(service) == []


@contextlib.contextmanager
def separate(redis: RedisServer, folder: Path) -> Iterator[System]:
    """Run each service on its own, for callers with tokens."""
    env = {
        "REDIS_URL": redis.url,
        "DATA_DIR": str(folder / "data"),
        "AUTH_MODE": "required",
        "AUTH_JWT_SECRET": SECRET,
        "LINK_SECRETS": SECRET.replace(",", ""),
        **LIMITS,
    }
    parts = {
        name: ServiceProcess(name, env, folder / f"{name}.log")
        for name in ("ingest", "gateway", "storage")
    }
    urls = {
        "": parts["ingest"].url,
        "/api/v1/storage": parts["storage"].url,
        "/v1/dashboard": parts["gateway"].url,
        "/v1/events": parts["gateway"].url,
        "/asyncapi.json": parts["gateway"].url,
        "/ws": parts["gateway"].url,
        "/api/v1/ws": parts["gateway"].url,
        "/progress/ws": parts["gateway"].url,
    }
    others: tuple[Mapping[str, str], ...] = (
        token_of("mallory"),
        token_of("root", scope="admin"),
        {},
        {"Authorization": "Bearer nonsense"},
    )
    with running(*parts.values()):
        yield System(urls, "alice", token_of("alice"), others)
        for one in parts.values():
            assert tracebacks(one) == []
