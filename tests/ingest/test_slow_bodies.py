"""Slow bodies: honest ones are waited for, drips and broken framing are not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.patience import Patience
from tests.ingest.conftest import Ingest, prepare, started
from tests.ingest.evidence import blob, tracebacks
from tests.ingest.tus_client import CHUNK, wait_for_offset
from tests.ingest.wire import Connection, chunk, head_of
from tests.processes import RedisServer, wait_until

KIB = 1024


def lasts(
    traffic: list[tuple[float, int]],
    *,
    idle_s: float = 60,
    least_rate: float = KIB,
    window_s: float = 60,
) -> float | None:
    """Return when patience with (time, bytes) is over; ``None`` if it lasts.

    It is looked at once a second, as ``receive`` does it.
    """
    patience = Patience(idle_s=idle_s, least_rate=least_rate, window_s=window_s, now=0.0)
    events, received = sorted(traffic), 0
    now, end = 0.0, max(at for at, _ in events)
    while now < end:
        now += 1.0
        while events and events[0][0] <= now:
            received += events.pop(0)[1]
        if patience.is_over(received, now):
            return now
    return None


def steady(rate: float, seconds: int) -> list[tuple[float, int]]:
    """Return traffic of so many bytes per second."""
    return [(float(second), int(rate)) for second in range(seconds)]


@pytest.mark.parametrize(
    ("traffic", "ends_at"),
    [
        pytest.param(steady(5 * KIB, 3600), None, id="slow-link"),
        pytest.param(steady(KIB, 3600), None, id="exactly-the-rate"),
        pytest.param(steady(KIB / 2, 3600), 121, id="half-the-rate"),
        pytest.param([(10.0 * n, 1) for n in range(360)], 61, id="drip"),
        pytest.param([(50.0 * n, 250 * KIB) for n in range(72)], None, id="bursts"),
        pytest.param([(0.0, 100 * KIB), (59.0, 1), (70.0, KIB)], 62, id="one-byte-buys-little"),
        pytest.param([(0.0, KIB), (300.0, KIB)], 62, id="silence"),
        pytest.param(steady(10**9, 10) + [(9.0 + 10 * n, 1) for n in range(9)], 70, id="saved"),
    ],
)
def test_whose_patience_ends(traffic: list[tuple[float, int]], ends_at: float | None) -> None:
    """Slow links and bursts are waited for without end, drips as long as the window is."""
    found = lasts(traffic)
    assert found == ends_at if ends_at is None else found == pytest.approx(ends_at, abs=1)


def test_no_rate_asks_for_none() -> None:
    """With a rate of 0 only silence ends a body, as it did before there was a rate."""
    assert lasts([(10.0 * n, 1) for n in range(360)], least_rate=0) is None
    assert lasts([(0.0, 1), (300.0, 1)], least_rate=0) == pytest.approx(61, abs=1)


@given(
    st.lists(st.floats(0.1, 19.0), min_size=1, max_size=100),
    st.floats(2 * KIB, 10**9),
)
def test_pauses_shorter_than_the_window_are_forgiven(pauses: list[float], rate: float) -> None:
    """A link of twice the rate may pause as long as it likes, below the window, each time."""
    traffic, now = [], 0.0
    for pause in pauses:
        now += pause
        traffic.append((now, int(rate * pause) + 1))
    assert lasts(traffic, window_s=20, idle_s=20) is None


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 2000)), min_size=1, max_size=200))
def test_whoever_lasts_has_brought_the_rate(traffic: list[tuple[float, int]]) -> None:
    """However bytes are spread, no body lasts that brought less than the rate on average."""
    if lasts(traffic, idle_s=10**6, window_s=30) is None:
        end = max(at for at, _ in traffic)
        assert sum(size for _, size in traffic) >= KIB * (end - 30) - KIB


@pytest.fixture(scope="module")
def strict(bus: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """A process that wants 100 bytes per second, and forgives a second without any."""
    folder = tmp_path_factory.mktemp("strict")
    rate = {"UPLOAD_MIN_RATE": "100", "UPLOAD_MIN_RATE_WINDOW": "1"}
    one = prepare(bus, folder / "data", folder / "log", **rate)
    with started(one):
        yield one
    assert tracebacks(one.service) == []


def test_a_drip_ends(strict: Ingest) -> None:
    """A client that sends a byte now and then gets 408 long before the idle limit."""
    path = strict.tus.create(1000)
    began = time.monotonic()
    with strict.tus.begin_patch(path, 0, 1000) as one:
        one.socket.settimeout(0.1)
        sent, answer = 0, None
        while answer is None:
            assert time.monotonic() - began < 10, "the drip is received forever"
            one.send(b"x")
            sent += 1
            with suppress(TimeoutError):
                answer = one.read()
    assert answer.status == 408
    kept = int(answer.headers["Upload-Offset"])
    assert 0 < kept <= sent
    assert strict.tus.offset(path) == kept
    assert blob(strict.data_dir, path) == b"x" * kept
    assert strict.tus.patch(path, kept, b"x" * (1000 - kept)).status == 204


def test_a_slow_link_lives(strict: Ingest) -> None:
    """A client that is slow, but faster than the least rate, is received to its end."""
    path = strict.tus.create(900)
    with strict.tus.begin_patch(path, 0, 900) as one:
        for _ in range(6):
            one.send(b"x" * 150)
            time.sleep(0.6)
        assert one.read().status == 204


@pytest.mark.parametrize("garbage", [b"xyz\r\n", b"-5\r\n", b"5\r\nabcdeX"])
def test_broken_framing_ends_at_once(ingest: Ingest, garbage: bytes) -> None:
    """Nobody waits for the end of a body whose framing broke; what came before is kept."""
    path = ingest.tus.create(1000)
    began = time.monotonic()
    with ingest.tus.begin_patch(path, 0, None, chunk(b"a" * 300)) as one:
        wait_for_offset(ingest.tus, path, 300)
        one.send(garbage)
        answer = one.read()
        assert answer.status == 400
        assert time.monotonic() - began < 5
    kept = int(answer.headers["Upload-Offset"])
    assert kept == (305 if b"abcde" in garbage else 300)
    assert ingest.tus.offset(path) == kept


def test_the_next_request_is_no_broken_framing(ingest: Ingest) -> None:
    """A request that comes right behind a chunked body is taken for what it is."""
    path = ingest.tus.create(300)
    headers = {**CHUNK, "Upload-Offset": "0", "Transfer-Encoding": "chunked"}
    with Connection(ingest.service.port) as one:
        one.send(
            head_of("PATCH", path, headers) + chunk(b"a" * 300) + chunk(b""),
            head_of("HEAD", path, {"Tus-Resumable": "1.0.0"}),
        )
        assert one.read().status == 204
        assert one.read(no_body=True).headers["Upload-Offset"] == "300"


def test_a_refused_client_does_not_delay_the_end(mortal: Ingest) -> None:
    """A client whose body was refused, and who keeps the connection, holds up no shutdown."""
    path = mortal.tus.create(10)
    with mortal.tus.begin_patch(path, 5, 10**9, b"x") as one:
        assert one.read().status == 409
        began = time.monotonic()
        assert mortal.service.terminate() == 0
        assert time.monotonic() - began < 5
    mortal.service.start()
    wait_until(lambda: mortal.tus.offset(path) == 0, "it serves again")
