"""Whatever ``Range`` says, the bytes are those of Python's slices: on both stores, by nginx."""

from __future__ import annotations

import http.client
import random
import re
from collections.abc import Iterator, Sequence
from typing import Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.processes import RedisServer
from tests.s3_servers import MotoServer
from tests.storage.served import Reply, Served, ask, find_nginx, proxied, served

SIZES: Final = (0, 1, 17, 65_536, 200_001, 3_000_000)
"""Around nginx's slices of 64 KiB, and the 1 MiB in which stores give bytes."""
MOST: Final = 50


class Shelf:
    """Files of all sizes, and a connection to where they are served."""

    def __init__(self, port: int, files: Sequence[tuple[str, bytes]]) -> None:
        self.link: Final = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.files: Final = files

    def get(self, number: int, **headers: str) -> tuple[Reply, bytes]:
        """Ask for a file; return the answer and what is in the file."""
        path, content = self.files[number]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.link, path, named), content


@pytest.fixture(scope="module", params=["files", "s3"])
def both(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
) -> Iterator[Served]:
    """Storage on each kind of store."""
    s3: MotoServer | None = None
    if request.param == "s3":
        s3 = request.getfixturevalue("moto_server")
    with served(tmp_path_factory.mktemp(f"ranges-{request.param}"), redis_server, s3) as one:
        yield one


@pytest.fixture(scope="module")
def contents(both: Served) -> Sequence[tuple[str, bytes]]:
    """The paths of files with random bytes."""
    source = random.Random(1)
    return [(both.upload(one), one) for one in map(source.randbytes, SIZES)]


@pytest.fixture(scope="module")
def shelf(both: Served, contents: Sequence[tuple[str, bytes]]) -> Iterator[Shelf]:
    """The files, straight from storage."""
    one = Shelf(both.storage.port, contents)
    yield one
    one.link.close()


@pytest.fixture(scope="module")
def cached(
    both: Served,
    contents: Sequence[tuple[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shelf]:
    """The files, through nginx."""
    if find_nginx() is None:
        pytest.skip("nginx is missing: make setup-system installs it")
    with proxied(tmp_path_factory.mktemp("nginx"), both.storage.url) as port:
        one = Shelf(port, contents)
        yield one
        one.link.close()


_places = st.one_of(
    st.integers(0, 20),
    st.integers(0, 3_000_100),
    st.sampled_from([65_535, 65_536, 131_072, 200_000, 1_048_576, 2_999_999, 2**63, 10**25]),
)
_specs = st.one_of(
    st.builds("{}-{}".format, _places, _places),
    st.tuples(_places, st.integers(0, 200_000)).map(lambda s: f"{s[0]}-{s[0] + s[1]}"),
    st.builds("{}-".format, _places),
    st.builds("-{}".format, _places),
)
_good = st.lists(_specs, min_size=1, max_size=6).map(lambda specs: f"bytes={','.join(specs)}")
_odd = st.one_of(
    st.builds("{}={}".format, st.sampled_from(["BYTES", "bytes ", "lines", ""]), _specs),
    st.lists(_specs, min_size=1, max_size=4).map(
        lambda specs: f"bytes= {' ,, '.join(specs)} ,"
    ),
    st.text(st.sampled_from("bytes=0123456789-, *"), max_size=20).map(str.strip),
    st.integers(MOST - 1, 80).map(
        lambda count: "bytes=" + ",".join(f"{3 * n}-{3 * n}" for n in range(count))
    ),
    st.just("bytes=" + ",".join(["0-"] * MOST)),
)
ranges: Final = _good | _odd


def slices(value: str, size: int) -> list[range] | None:
    """Return the positions that a header asks for; ``None``: it is to be ignored."""
    found = re.fullmatch(r"bytes=(.*)", value, re.IGNORECASE | re.ASCII)
    specs = [one.strip(" \t") for one in found[1].split(",")] if found else []
    specs = [one for one in specs if one]
    everything, wanted = range(size), []
    if not 0 < len(specs) <= MOST:
        return None
    for one in specs:
        first, dash, last = one.partition("-")
        digits = f"{first}{last}"
        if not dash or not re.fullmatch("[0-9]+", digits) or max(map(len, (first, last))) > 19:
            return None
        if not first:
            wanted.append(everything[-int(last) :] if int(last) else range(0))
        elif not last:
            wanted.append(everything[int(first) :])
        elif int(last) < int(first):
            return None
        else:
            wanted.append(everything[int(first) : int(last) + 1])
    return [one for one in wanted if one]


def parts_of(reply: Reply, size: int) -> list[tuple[range, bytes]]:
    """Return the parts of a 206, in order, each with the positions it claims to be of."""
    assert int(reply.headers["Content-Length"]) == len(reply.body)
    kind = reply.headers["Content-Type"]
    found = re.fullmatch("multipart/byteranges; boundary=([0-9a-f]{32})", kind)
    if found is None:
        return [(claimed(reply.headers["Content-Range"], size), reply.body)]
    assert "Content-Range" not in reply.headers
    line = b"--" + found[1].encode()
    assert reply.body.startswith(line + b"\r\n")
    assert reply.body.endswith(b"\r\n" + line + b"--\r\n")
    parts = []
    for one in reply.body.removesuffix(line + b"--\r\n").split(line + b"\r\n")[1:]:
        head, _, body = one.partition(b"\r\n\r\n")
        fields = dict(field.split(": ", 1) for field in head.decode().split("\r\n"))
        assert set(fields) == {"Content-Type", "Content-Range"}
        assert "multipart" not in fields["Content-Type"]
        parts.append((claimed(fields["Content-Range"], size), body.removesuffix(b"\r\n")))
    assert len(parts) > 1
    return parts


def claimed(value: str, size: int) -> range:
    """Return the positions in a Content-Range."""
    found = re.fullmatch("bytes ([0-9]+)-([0-9]+)/([0-9]+)", value)
    assert found is not None, value
    first, last, total = map(int, found.groups())
    assert first <= last < total == size
    return range(first, last + 1)


def check(reply: Reply, content: bytes, wanted: list[range] | None) -> None:
    """Check that an answer has each byte that was asked for, once, and no other."""
    size = len(content)
    if wanted is None or (not size and reply.status == 200):
        assert (reply.status, reply.body) == (200, content)
    elif not wanted:
        assert reply.status == 416
        assert reply.headers["Content-Range"] == f"bytes */{size}"
    else:
        assert reply.status == 206, reply
        parts = parts_of(reply, size)
        assert all(body == content[part.start : part.stop] for part, body in parts)
        sent = [span for span, _ in parts]
        assert all(any(one[0] in span and one[-1] in span for span in sent) for one in wanted)
        edges = {one.start for one in wanted}, {one.stop for one in wanted}
        assert all(span.start in edges[0] and span.stop in edges[1] for span in sent)
        assert not any(
            a is not b and a.start <= b.stop and b.start <= a.stop for a in sent for b in sent
        )


_often: Final = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_often
@given(number=st.integers(0, len(SIZES) - 1), value=ranges)
@example(number=5, value="bytes=0-0,2999999-,65536-131071")
@example(number=5, value="bytes=1048575-1048576,0-1500000,-1")
@example(number=0, value="bytes=-5")
def test_the_answer_is_what_slicing_says(shelf: Shelf, number: int, value: str) -> None:
    """A wrong edge, a part too many, a length that is off by one would show."""
    reply, content = shelf.get(number, Range=value)

    check(reply, content, slices(value, len(content)))


@_often
@given(number=st.integers(1, len(SIZES) - 1), value=ranges)
def test_a_cache_of_slices_puts_the_same_together(
    cached: Shelf, number: int, value: str
) -> None:
    """nginx fetches slices by ranges of its own, and checks that all have one ETag."""
    reply, content = cached.get(number, Range=value)

    wanted = slices(value, len(content))
    if wanted is not None and re.fullmatch("bytes=(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]+)", value):
        check(reply, content, wanted)
    elif reply.status == 206:  # it reads the odd ones in its own way, or not at all
        parts = parts_of(reply, len(content))
        assert all(body == content[part.start : part.stop] for part, body in parts)
    else:
        assert reply.status == 416 or (reply.status, reply.body) == (200, content)


def test_slices_are_kept(cached: Shelf) -> None:
    """A cache that never hits, because validators change or are missing, is none."""
    first, content = cached.get(5, Range="bytes=100-200")
    again, _ = cached.get(5, Range="bytes=150-180")

    assert first.status == again.status == 206
    assert again.headers["X-Cache"] == "HIT"
    assert again.body == content[150:181]


@pytest.mark.parametrize(
    ("condition", "status"), [("{etag}", 206), ("{date}", 206), ('"x"', 200), ("W/{etag}", 200)]
)
def test_if_range(shelf: Shelf, condition: str, status: int) -> None:
    """A set of ranges counts only for the very file; a part of another one is never sent."""
    known, content = shelf.get(4)
    told = condition.format(etag=known.headers["ETag"], date=known.headers["Last-Modified"])

    reply, _ = shelf.get(4, Range="bytes=0-0,9-9", If_Range=told)

    assert reply.status == status
    check(reply, content, [range(1), range(9, 10)] if status == 206 else None)
