"""Tests of ``shared.times``."""

from __future__ import annotations

import pytest

from shared.times import rfc3339


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [(0, "1970-01-01T00:00:00Z"), (1735732800250, "2025-01-01T12:00:00.250Z")],
)
def test_times_are_rfc_3339_in_utc(at_ms: int, text: str) -> None:
    """Whole seconds have no fraction; the zone is written Z."""
    assert rfc3339(at_ms) == text
