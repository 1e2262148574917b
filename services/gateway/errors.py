"""Errors that only the gateway returns; ``shared.errors`` has the others."""

from __future__ import annotations

from shared.errors import NotFound

__all__ = ["ProgressNotFound"]


class ProgressNotFound(NotFound):
    """There is no progress for this session, or no more.

    Code from seed document 000.
    """

    error_code = "PROGRESS_NOT_FOUND"
