"""Who is pinged and who is given up, by a clock that the test turns."""

from __future__ import annotations

import asyncio
from typing import Final

from services.gateway.frames import PING
from services.gateway.keepalive import Alive, Keepalive


class Peer:
    """A socket whose other end answers when it is told to."""

    def __init__(self) -> None:
        self.heard_at = 0.0
        self.asked_at: float | None = None
        self.pings: Final[list[bytes]] = []
        self.busy = False

    def ping(self, frame: bytes) -> bool:
        """Take a ping, unless the socket is busy."""
        if not self.busy:
            self.pings.append(frame)
        return not self.busy


class Watch:
    """A keepalive of 30 s and 10 s with one peer."""

    def __init__(self) -> None:
        self.peer: Final = Peer()
        self.dead: Final[list[Alive]] = []
        self.keepalive: Final = Keepalive(interval_s=30, timeout_s=10, on_dead=self.dead.append)
        self.keepalive.add(self.peer)

    def at(self, *times: float) -> None:
        """Look at these times, seconds."""
        for now in times:
            self.keepalive.look(now)


def test_nobody_is_pinged_while_he_talks() -> None:
    """A sign of life puts the next ping off."""
    watch = Watch()
    watch.at(10, 29.9)
    watch.peer.heard_at = 25
    watch.at(30, 54.9)
    assert watch.peer.pings == []
    watch.at(55)
    assert watch.peer.pings == [PING]


def test_an_answer_starts_anew() -> None:
    """Who answers is pinged again only after the next silence."""
    watch = Watch()
    watch.at(30)
    watch.peer.heard_at = 30.1
    watch.at(31, 45, 60)
    assert (len(watch.peer.pings), watch.dead) == (1, [])
    watch.at(60.2)
    assert len(watch.peer.pings) == 2


def test_silence_is_given_up_once() -> None:
    """Who does not answer within the limit is given up, exactly once."""
    watch = Watch()
    watch.at(30, 35, 39.9)
    assert watch.dead == []
    watch.at(40, 41, 80)
    assert watch.dead == [watch.peer]
    assert len(watch.peer.pings) == 1


def test_an_answer_at_the_last_moment_counts() -> None:
    """Anything that comes after the ping is an answer, also if nobody has looked since."""
    watch = Watch()
    watch.at(30)
    watch.peer.heard_at = 39.99
    watch.at(45)
    assert watch.dead == []


def test_a_busy_socket_is_not_given_up_without_a_ping() -> None:
    """Who is still reading what came before owes no answer to a ping that never left."""
    watch = Watch()
    watch.peer.busy = True
    watch.at(30, 41, 60)
    assert watch.dead == []
    watch.peer.busy = False
    watch.at(61, 70)
    assert (len(watch.peer.pings), watch.dead) == (1, [])
    watch.at(71)
    assert watch.dead == [watch.peer]


def test_removed_sockets_are_left_alone() -> None:
    """Who has gone is neither pinged nor given up."""
    watch = Watch()
    watch.keepalive.remove(watch.peer)
    watch.keepalive.remove(watch.peer)
    watch.at(30, 60)
    assert (watch.peer.pings, watch.dead) == ([], [])


def test_a_socket_that_goes_while_all_are_looked_at() -> None:
    """Giving one up may remove another; the round goes on."""
    peers = [Peer(), Peer()]

    def remove_all(_one: Alive) -> None:
        for peer in peers:
            keepalive.remove(peer)

    keepalive = Keepalive(interval_s=30, timeout_s=10, on_dead=remove_all)
    for peer in peers:
        keepalive.add(peer)
    keepalive.look(30)
    keepalive.look(40)


async def test_runs_by_itself() -> None:
    """The job looks often enough for limits that are far below a second."""
    loop = asyncio.get_running_loop()
    given_up: asyncio.Future[Alive] = loop.create_future()
    keepalive = Keepalive(interval_s=0.05, timeout_s=0.05, on_dead=given_up.set_result)
    peer = Peer()
    peer.heard_at = loop.time()
    keepalive.add(peer)
    job = asyncio.ensure_future(keepalive.run())
    assert await asyncio.wait_for(given_up, 5) is peer
    assert loop.time() - peer.heard_at >= 0.1
    job.cancel()
    await asyncio.wait({job})
