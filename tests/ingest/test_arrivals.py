"""Those who wait for an upload are woken, and nobody is kept in mind for good."""

from __future__ import annotations

import asyncio

from services.ingest.arrivals import Arrivals

LONG_S = 20.0


async def test_those_who_wait_are_woken() -> None:
    """One who waits would sleep on although it is there, or be woken for another."""
    arrivals = Arrivals()
    waiting = [asyncio.ensure_future(arrivals.wait("a", at_most_s=LONG_S)) for _ in range(3)]
    other = asyncio.ensure_future(arrivals.wait("b", at_most_s=LONG_S))
    await asyncio.sleep(0)
    arrivals.tell("a")
    arrivals.tell("unknown")
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert not other.done()
    arrivals.tell_all()
    await asyncio.wait_for(other, 5)


async def test_waiting_ends_by_itself() -> None:
    """What completes in another process is told nobody here, so waiting must end."""
    await asyncio.wait_for(Arrivals().wait("a", at_most_s=0.01), 5)


async def test_nothing_is_kept() -> None:
    """Each wait, cancelled or not, would leave something in memory."""
    arrivals = Arrivals()
    gone = asyncio.ensure_future(arrivals.wait("a", at_most_s=LONG_S))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    await arrivals.wait("b", at_most_s=0.01)
    assert arrivals._waiting == {}
