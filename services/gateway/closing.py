"""Why a socket is closed by us, as clients are told (`docs/websocket.md` has the table)."""

from __future__ import annotations

from typing import Final

__all__ = ["FORBIDDEN", "NOT_FOUND", "UNAUTHORIZED", "Closing"]

UNAUTHORIZED: Final = 4001
FORBIDDEN: Final = 4003
NOT_FOUND: Final = 4004


class Closing(Exception):
    """The socket must be closed; the text goes to the client as an error first."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code: Final = code
        self.message: Final = message
