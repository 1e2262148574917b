"""What a client may send, byte by byte: no I/O, so every case there is can be tried."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from collections.abc import Iterable
from time import perf_counter
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.client_frames import (
    BinaryMessage,
    ClientFrames,
    CloseFrame,
    Heard,
    PingFrame,
    PongFrame,
    TextMessage,
    Violation,
)
from tests.gateway.raw_socket import BINARY, CLOSE, PING, PONG, TEXT, frame

LIMIT: Final = 64 * 1024
CONTINUATION: Final = 0


def heard(*pieces: bytes, limit: int = LIMIT) -> list[Heard]:
    """Return what becomes of the pieces, each fed on its own."""
    frames = ClientFrames(limit=limit)
    return [one for piece in pieces for one in frames.feed(piece)]


def outcome(data: bytes, limit: int = LIMIT) -> list[Heard | int]:
    """Return what is heard, with the code alone in place of a breach."""
    found = heard(data, limit=limit)
    return [one.code if isinstance(one, Violation) else one for one in found]


def fragments(opcode: int, *payloads: bytes) -> bytes:
    """Return one message in so many frames."""
    last = len(payloads) - 1
    return b"".join(
        frame(opcode if n == 0 else CONTINUATION, payload, fin=n == last)
        for n, payload in enumerate(payloads)
    )


def closing(code: int, reason: bytes = b"") -> bytes:
    """Return a close frame."""
    return frame(CLOSE, struct.pack("!H", code) + reason)


EURO: Final = "€".encode()
GOOD: dict[str, tuple[bytes, list[Heard]]] = {
    "empty text": (frame(TEXT), [TextMessage("")]),
    "empty binary": (frame(BINARY), [BinaryMessage(b"")]),
    **{
        f"text of {n}": (frame(TEXT, b"*" * n), [TextMessage("*" * n)])
        for n in (1, 125, 126, 127, 128, 65_535, 65_536)
    },
    "any byte": (frame(BINARY, bytes(range(256))), [BinaryMessage(bytes(range(256)))]),
    "characters of all lengths": (frame(TEXT, "aä€😀".encode()), [TextMessage("aä€😀")]),
    "a character in two fragments": (
        fragments(TEXT, EURO[:1], EURO[1:]),
        [TextMessage("€")],
    ),
    "empty fragments": (fragments(TEXT, b"", b"", b""), [TextMessage("")]),
    "binary in fragments": (fragments(BINARY, b"a", b"", b"b"), [BinaryMessage(b"ab")]),
    "two messages in fragments": (
        fragments(TEXT, b"a", b"b") + fragments(BINARY, b"c", b"d"),
        [TextMessage("ab"), BinaryMessage(b"cd")],
    ),
    "control frames between fragments": (
        frame(TEXT, b"a", fin=False) + frame(PING, b"?") + frame(PONG) + frame(0, b"b"),
        [PingFrame(b"?"), PongFrame(b""), TextMessage("ab")],
    ),
    "a ping of 125": (frame(PING, b"x" * 125), [PingFrame(b"x" * 125)]),
    "a close within a message": (
        frame(TEXT, b"a", fin=False) + closing(1000),
        [CloseFrame(1000)],
    ),
    "a close of no code": (frame(CLOSE), [CloseFrame(None)]),
    "a close of a reason": (closing(1000, b"x" * 123), [CloseFrame(1000)]),
    "nothing after a close": (closing(1000) + frame(TEXT, b"a") * 3, [CloseFrame(1000)]),
    "more of a message that is over": (
        fragments(TEXT, b"a", b"b") + frame(CONTINUATION),
        [TextMessage("ab"), Violation(1002, "a fragment out of place")],
    ),
    "U+0000": (frame(TEXT, b"\0"), [TextMessage("\0")]),
    "U+FFFF": (frame(TEXT, "\uffff".encode()), [TextMessage("\uffff")]),
}

BAD: dict[str, tuple[bytes, int]] = {
    **{f"reserved bit {n}": (frame(TEXT, b"a", rsv=n), 1002) for n in range(1, 8)},
    "a message not masked": (frame(TEXT, b"a", mask=False), 1002),
    "a ping not masked": (frame(PING, b"a", mask=False), 1002),
    "a control frame of 126": (frame(PING, b"x" * 126), 1002),
    **{
        f"a fragment of control {n}": (frame(n, b"", fin=False), 1002)
        for n in (CLOSE, PING, PONG)
    },
    "the end of no message": (frame(CONTINUATION, b"a"), 1002),
    "more of no message": (frame(CONTINUATION, b"a", fin=False), 1002),
    "a message within a message": (frame(TEXT, b"", fin=False) + frame(TEXT), 1002),
    "another kind within a message": (frame(TEXT, b"", fin=False) + frame(BINARY), 1002),
    "126 in the long form": (b"\x81\xfe" + struct.pack("!H", 125), 1002),
    "65,535 in the longest form": (b"\x81\xff" + struct.pack("!Q", 65_535), 1002),
    "a length of 64 bits": (b"\x81\xff" + struct.pack("!Q", 1 << 63), 1002),
    "a length of 63 bits": (b"\x82\xff" + struct.pack("!Q", (1 << 63) - 1), 1009),
    "a byte too many": (frame(TEXT, b"x" * (LIMIT + 1)), 1009),
    "a byte too many in fragments": (fragments(TEXT, b"x" * LIMIT, b"x"), 1009),
    "bytes, not characters": (fragments(TEXT, EURO * (LIMIT // 3), b"xx"), 1009),
    "half a character": (frame(TEXT, EURO[:1]), 1007),
    "half a character in fragments": (fragments(TEXT, EURO[:1], b""), 1007),
    "a wrong byte, long before the end": (frame(TEXT, b"a\xff", fin=False), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "an overlong form": (frame(TEXT, b"\xc0\xaf"), 1007),
    "beyond Unicode": (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "half a close code": (frame(CLOSE, b"\x03"), 1002),
    "a close reason of no text": (closing(1000, b"\xff"), 1007),
}


@pytest.mark.parametrize("kind", GOOD)
def test_good(kind: str) -> None:
    """A stream that keeps to the RFC is understood, whole and in order."""
    data, expected = GOOD[kind]
    assert heard(data) == expected


@pytest.mark.parametrize("kind", BAD)
def test_bad(kind: str) -> None:
    """A breach ends the stream with the code for it; what was good before it is heard."""
    data, code = BAD[kind]
    assert outcome(frame(PING, b"!") + data + frame(PING) * 3) == [PingFrame(b"!"), code]


@pytest.mark.parametrize("kind", [*GOOD, *BAD])
def test_one_byte_at_a_time(kind: str) -> None:
    """The network may deliver single bytes; that changes nothing."""
    data = (GOOD | BAD)[kind][0]
    pieces = (data[n : n + 1] for n in range(len(data)))
    assert heard(*pieces) == heard(data)


def test_all_first_bytes() -> None:
    """Of all first two bytes only the few right ones are waited on; the rest is a breach."""
    for first, second in itertools.product(range(256), repeat=2):
        opcode, length = first & 0x0F, second & 0x7F
        control = opcode >= 8
        right = (
            not first & 0x70
            and opcode in {0, 1, 2, 8, 9, 10}
            and second >= 0x80
            and not (control and (first < 0x80 or length > 125))
        )
        found = outcome(bytes((first, second)))
        assert found == ([] if right else [1002]), (first, second)


def test_all_close_codes() -> None:
    """Codes that the RFC, IANA or applications may give are good; no other is (7.4)."""
    for code in range(1 << 16):
        good = code in {*range(1000, 1004), *range(1007, 1015)} or 3000 <= code <= 4999
        expected = CloseFrame(code) if good else 1002
        assert outcome(closing(code)) == [expected], code


messages = st.one_of(
    st.builds(lambda text: (TEXT, text.encode(), [TextMessage(text)]), st.text(max_size=200)),
    st.builds(lambda data: (BINARY, data, [BinaryMessage(data)]), st.binary(max_size=300)),
    st.builds(lambda data: (PING, data, [PingFrame(data)]), st.binary(max_size=125)),
)
cuts = st.lists(st.integers(0, 1 << 16), max_size=12)


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    """Return the data in pieces."""
    where = sorted({0, len(data), *(n % (len(data) + 1) for n in at)})
    return [data[a:b] for a, b in itertools.pairwise(where)]


@given(st.lists(st.tuples(messages, cuts), max_size=8), cuts)
def test_any_split_of_a_good_stream(
    said: list[tuple[tuple[int, bytes, list[Heard]], list[int]]], segments: list[int]
) -> None:
    """However messages are fragmented and the stream is cut, the same is heard."""
    data, expected = b"", []
    for (opcode, payload, found), at in said:
        whole = opcode == PING or not payload
        data += frame(opcode, payload) if whole else fragments(opcode, *cut(payload, at))
        expected += found
    assert heard(*cut(data, segments)) == expected


@given(st.lists(st.binary(max_size=400), max_size=10))
def test_random_bytes(pieces: list[bytes]) -> None:
    """Noise raises nothing, and is heard the same in one piece and in many."""
    assert heard(*pieces) == heard(b"".join(pieces))


@given(st.data())
@settings(max_examples=300)
def test_good_streams_with_a_wrong_byte(data: st.DataObject) -> None:
    """A bit that flips anywhere raises nothing, and after a breach nothing is heard."""
    stream = bytearray(b"".join(one for one, _ in list(GOOD.values())[:2]))
    stream += fragments(TEXT, b"a" * 100, EURO * 50) + frame(PING, b"x" * 9) + closing(1000)
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    found = heard(*cut(bytes(stream), data.draw(cuts)))
    ends = [n for n, one in enumerate(found) if isinstance(one, Violation | CloseFrame)]
    assert ends in ([], [len(found) - 1])


def test_fragments_without_end() -> None:
    """A message of ever more empty fragments is ended, however little they hold."""
    frames = ClientFrames(limit=LIMIT)
    assert frames.feed(frame(TEXT, fin=False)) == []
    one_more = frame(CONTINUATION, fin=False)
    for _ in range(1023):
        assert frames.feed(one_more) == []
    assert [one.code for one in frames.feed(one_more) if isinstance(one, Violation)] == [1008]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("step", [1, 64, 4096])
def test_memory_of_a_message_that_never_ends(opcode: int, step: int) -> None:
    """Whatever is sent, and in what pieces, no more is kept than a message may have."""
    stream = b"".join(
        frame(CONTINUATION if n else opcode, b"\xc3\xa4" * 500, fin=False) for n in range(200)
    )
    frames = ClientFrames(limit=LIMIT)
    tracemalloc.start()
    try:
        for at in range(0, len(stream), step):
            frames.feed(stream[at : at + step])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * LIMIT


def test_single_bytes_cost_no_more_for_a_long_message() -> None:
    """Sixteen times the length takes some sixteen times as long, not its square."""

    def seconds(size: int) -> float:
        data, best = frame(TEXT, b"x" * size), 9.9
        for _ in range(3):
            frames, started = ClientFrames(limit=LIMIT), perf_counter()
            for n in range(len(data)):
                frames.feed(data[n : n + 1])
            best = min(best, perf_counter() - started)
        return best

    assert seconds(64 * 1024) < 16 * 4 * seconds(4 * 1024)
