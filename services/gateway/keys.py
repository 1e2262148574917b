"""Names of the keys that gateways own; all begin with ``PROGRESS_PREFIX``. No I/O.

What follows the prefix is an upload's id, or has a colon: no id has one, so nobody reaches a
key of another kind by asking for its name. Ids of users and tenants may hold anything, so they
are quoted wherever something follows them or braces go around them. What stands in braces
decides the slot on Redis Cluster: all sets of a tenant are in one, so that one script may
change them together.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote

__all__ = ["LISTED", "Keys", "member_of", "user_and_session"]

LISTED: Final = ("uploading", "completed", "error", "cancelled")
"""The statuses under which a tenant's sessions are listed, each in a set of its own."""


class Keys:
    """The names under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix: Final = prefix
        self.tenants: Final = f"{prefix}:gateways:tenants"
        """Sorted set: tenants by when something of theirs was recorded last."""
        self.cleaner: Final = f"{prefix}:gateways:cleaner"
        """Lock: of the gateway that cleans up."""
        self.canary: Final = f"{prefix}:gateways:canary"
        """Stream: heartbeats of gateways to themselves."""

    def upload(self, upload_id: str) -> str:
        """Hash: the projection."""
        return f"{self._prefix}:{upload_id}"

    def user(self, user_id: str) -> str:
        """Set: the sessions of a user (000:252 to 257)."""
        return f"{self._prefix}:user:{user_id}"

    def name(self, tenant: str, user_id: str, name: str) -> str:
        """Text: the upload that a user's own name for a session stands for."""
        parts = (quote(one, safe="") for one in (tenant, user_id, name))
        return f"{self._prefix}:name:{':'.join(parts)}"

    def sockets(self, tenant: str, user_id: str) -> str:
        """Sorted set: the open sockets of a user, by when their leases end."""
        parts = (quote(one, safe="") for one in (tenant, user_id))
        return f"{self._prefix}:sockets:{':'.join(parts)}"

    def job(self, job_id: str) -> str:
        """Text: the upload that a job processes."""
        return f"{self._prefix}:job:{quote(job_id, safe='')}"

    def log(self, upload_id: str) -> str:
        """Hash: the events of an upload."""
        return f"{self._prefix}:{upload_id}:log"

    def listed(self, tenant: str, status: str) -> str:
        """Sorted set: a tenant's sessions of one status, by when they were recorded last."""
        return f"{self._prefix}:tenant:{{{quote(tenant, safe='')}}}:{status}"


def member_of(user_id: str, session_id: str) -> str:
    """Return how a session is written in its tenant's sets."""
    return f"{quote(user_id, safe='')}:{session_id}"


def user_and_session(member: bytes) -> tuple[str, str]:
    """Return whose session a member is, and its id."""
    user_id, _, session_id = member.decode(errors="replace").partition(":")
    return unquote(user_id), session_id
