"""What ``Upload-Concat`` says: which uploads are named, and how long they are together."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.concatenation import PARTIAL, named_parts, total_size
from shared.errors import InvalidRequest, PayloadTooLarge
from shared.sidecar import is_upload_id, new_id

E: Final = "/api/v1/uploads"
OURS: Final = f"https://up.example:8443/files{E}"
ONE: Final = new_id()

GOOD: Final = {
    OURS: [
        *(f"{OURS}/{ONE}", f"/files{E}/{ONE}", f"uploads/{ONE}", ONE, f"./{ONE}"),
        *(f"//up.example:8443/files{E}/{ONE}", f"HTTPS://UP.example:8443/files{E}/{ONE}"),
        f"http://up.example:8443/files{E}/{ONE}",
    ],
    f"http://a{E}": [f"http://a{E}/{ONE}", f"http://a:80{E}/{ONE}", f"https://a{E}/{ONE}"],
    f"https://a:443{E}": [f"https://a{E}/{ONE}"],
    f"http://[::1]:8080{E}": [f"http://[::1]:8080{E}/{ONE}"],
    E: [f"{E}/{ONE}", f"uploads/{ONE}", ONE],
}


@pytest.mark.parametrize(("collection", "url"), [(c, url) for c in GOOD for url in GOOD[c]])
def test_our_urls(collection: str, url: str) -> None:
    """A URL that we gave, or one that leads to the same place, would be refused."""
    assert named_parts(f"final;{url}", collection) == (ONE,)


BAD: Final = [
    *(f"{E}/{ONE}", f"https://up.example{E}/{ONE}", f"https://up.example:8443{E}/{ONE}"),
    *(f"https://evil.example/files{E}/{ONE}", f"https://up.example:8443@evil/files{E}/{ONE}"),
    *(f"ftp://up.example:8443/files{E}/{ONE}", f"javascript:/files{E}/{ONE}"),
    *(f"{OURS}/{ONE}?a", f"{OURS}/{ONE}#a", f"{OURS}/{ONE}/", f"{OURS}/{ONE}/..", OURS),
    *(
        f"{OURS}/../uploads/{ONE}",
        "../../etc/passwd",
        f"{OURS}/%2e%2e/{ONE}",
        "http://[",
        "\x00",
    ),
    *(f"{OURS}/{ONE.upper()}", f"{OURS}/{ONE[:-1]}", f"{OURS}//{ONE}", f"{OURS}/{ONE}\x00"),
    *(f"up.example:8443/files{E}/{ONE}", f"\\files{E}\\{ONE}"),
]


@pytest.mark.parametrize("url", BAD)
def test_other_urls(url: str) -> None:
    """A URL that leads elsewhere would name an upload here."""
    with pytest.raises(InvalidRequest):
        named_parts(f"final;{url}", OURS)


@pytest.mark.parametrize(
    "value", ["", " ", "final", "final;", "final; ", "Final;x", "partial;"]
)
def test_neither_one_nor_the_other(value: str) -> None:
    """A value that says nothing would make a final upload of nothing."""
    with pytest.raises(InvalidRequest):
        named_parts(value, OURS)


@given(st.text())
def test_any_text(value: str) -> None:
    """Some text would raise what nobody catches, or name what is no id."""
    for text in (value, f"final;{value}", f"final;{E}/{value}"):
        try:
            found = named_parts(text, E)
        except InvalidRequest:
            continue
        assert all(is_upload_id(one) for one in found)
        assert bool(found) is (text != PARTIAL)


def test_order_and_repeats_are_kept() -> None:
    """Parts would be sorted, or named once each."""
    other = new_id()
    value = f"final;{E}/{other} {E}/{ONE}  {E}/{other}"
    assert named_parts(value, E) == (other, ONE, other)


def test_parts_are_counted() -> None:
    """A list without an end would be read to its end, or the longest good one refused."""
    assert len(named_parts("final;" + f"{ONE} " * 10_000, E)) == 10_000
    with pytest.raises(InvalidRequest):
        named_parts("final;" + f"{ONE} " * 10_001, E)


@given(st.lists(st.none() | st.integers(0, 100)), st.integers(0, 500))
def test_total_size(sizes: list[int | None], limit: int) -> None:
    """A sum would be told while a part is unknown, or pass the limit."""
    known = sum(size or 0 for size in sizes)
    if limit and known > limit:
        with pytest.raises(PayloadTooLarge):
            total_size(sizes, max_size=limit)
    else:
        assert total_size(sizes, max_size=limit) == (None if None in sizes else known)
