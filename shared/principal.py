"""Who somebody is, once it is proved; nothing here proves it."""

from __future__ import annotations

from typing import Final, TypeGuard

import msgspec

__all__ = ["Principal", "is_id", "is_name"]

_MAX_LENGTH: Final = 128  # characters


class Principal(msgspec.Struct, frozen=True):
    """Who is calling.

    Ids have 1 to 128 printable characters and no space. They may hold ``/``, ``:`` and
    braces: quote them before they become part of a path or a key.
    """

    user_id: str
    tenant: str
    username: str
    """For people to read; proves nothing."""
    scopes: frozenset[str]
    expires_at: float | None
    """When the credentials end, seconds since the epoch (UTC), without leeway. None: never."""

    @property
    def is_admin(self) -> bool:
        """May act for every user of the own tenant, and for no other tenant."""
        return "admin" in self.scopes

    def owns(self, *, user_id: str, tenant: str) -> bool:
        """Whether a thing of that user, in that tenant, is the caller's to use."""
        return tenant == self.tenant and (user_id == self.user_id or self.is_admin)


def is_name(value: object) -> TypeGuard[str]:
    """Whether a value may be shown to people as somebody's name."""
    return isinstance(value, str) and 0 < len(value) <= _MAX_LENGTH and value.isprintable()


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value may be the id of a user or a tenant."""
    return is_name(value) and " " not in value
