"""When sockets have lived long enough, by a clock that the test turns."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Final

from services.gateway.lifetimes import Lifetimes, Mortal


class Peer:
    """A socket that does nothing."""

    def close(self, code: int, reason: str) -> None:
        """Nobody closes it here."""
        raise AssertionError(code)


def test_they_do_not_end_together() -> None:
    """Of sockets opened at once, each ends once, within a tenth of the limit, spread evenly."""
    ended: Final[list[Mortal]] = []
    lifetimes = Lifetimes(most_s=100, on_old=ended.append)
    peers = [Peer() for _ in range(2000)]
    for peer in peers:
        lifetimes.add(peer, 1000.0)
    counts = []
    for now in (1089, 1095, 1100, 1105, 1111, 1300):
        lifetimes.look(now)
        counts.append(len(ended))
    assert counts[0] == 0
    assert counts[-2:] == [2000, 2000]
    assert all(300 < after - before < 700 for before, after in pairwise(counts[:5]))
    assert set(ended) == set(peers)


def test_who_has_gone_is_left_alone() -> None:
    """A socket that is removed is not closed, and may be removed again."""
    ended: list[Mortal] = []
    lifetimes, peer = Lifetimes(most_s=1, on_old=ended.append), Peer()
    lifetimes.add(peer, 0)
    lifetimes.remove(peer)
    lifetimes.remove(peer)
    lifetimes.look(10)
    assert ended == []


def test_no_limit() -> None:
    """With 0 a socket lives forever."""
    ended: list[Mortal] = []
    lifetimes = Lifetimes(most_s=0, on_old=ended.append)
    lifetimes.add(Peer(), 0)
    lifetimes.look(1e12)
    assert ended == []


async def test_runs_by_itself() -> None:
    """The job looks often enough for limits far below a second."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Mortal] = loop.create_future()
    lifetimes, peer = Lifetimes(most_s=0.1, on_old=ended.set_result), Peer()
    lifetimes.add(peer, loop.time())
    job = asyncio.ensure_future(lifetimes.run())
    assert await asyncio.wait_for(ended, 5) is peer
    job.cancel()
    await asyncio.wait({job})
