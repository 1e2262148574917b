"""Frames that the server builds itself, read by the parser of another library."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from services.gateway.frames import PING, frame

BOUNDARIES = [0, 1, 124, 125, 126, 127, 65_534, 65_535, 65_536, 65_537, 300_000]


def read_by_websockets(data: bytes) -> list[Frame]:
    """Return the frames that the library ``websockets`` finds, as a client."""
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    client.receive_data(data)
    assert client.parser_exc is None
    return [event for event in client.events_received() if isinstance(event, Frame)]


@pytest.mark.parametrize("length", BOUNDARIES)
def test_lengths_around_each_form(length: int) -> None:
    """Each of the three forms of a length is used where RFC 6455 section 5.2 demands it."""
    payload = b"x" * length
    framed = frame(payload)
    head = 2 if length < 126 else 4 if length < 65_536 else 10
    assert len(framed) == head + length
    assert read_by_websockets(framed) == [Frame(Opcode.TEXT, payload)]


@given(st.lists(st.text(max_size=300), max_size=5))
def test_several_in_one_write(texts: list[str]) -> None:
    """Frames written in one piece come out one by one, unmasked, whole and in order."""
    data = b"".join(frame(one.encode()) for one in texts)
    frames = read_by_websockets(data)
    assert [one.data for one in frames] == [one.encode() for one in texts]
    assert all(one.fin and not (one.rsv1 or one.rsv2 or one.rsv3) for one in frames)


def test_ping() -> None:
    """The ping that all sockets share is a ping with nothing in it."""
    assert read_by_websockets(PING) == [Frame(Opcode.PING, b"")]
