"""The page of conformance names the tests that there are, and every item has one."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.ingest.conformance import (
    PAGE,
    ROOT,
    Part,
    items_of,
    load_parts,
    names_in,
    page,
    results_in,
)

PARTS = load_parts()
TESTS = names_in(ROOT / "tests")


def test_the_page_is_current() -> None:
    """The page would tell of tests that are gone, or leave out those that were added."""
    written = PAGE.read_text()
    results = results_in(written)
    assert set(results) == TESTS, "run make conformance"
    assert written == page(PARTS, results), "run make conformance"


def test_nothing_failed() -> None:
    """A page would be published that tells of failures nobody has looked at."""
    results = results_in(PAGE.read_text())
    assert {name for name, outcome in results.items() if outcome != "passed"} == set()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.title)
def test_every_item_has_a_test(part: Part) -> None:
    """An item that binds the server would be forgotten."""
    tested = set[int]().union(*map(items_of, TESTS)) & set(part.items)
    binding = {number for number, item in part.items.items() if not item.client}
    missing = binding - tested if part.every_item_has_a_test else set()
    assert missing == set()


def test_items_are_numbered_once() -> None:
    """A number would stand for two things, or a test for an item that is not listed."""
    numbers = Counter(number for part in PARTS for number in part.items)
    assert list(numbers) == list(range(1, 179))
    assert set[int]().union(*map(items_of, TESTS)) <= set(numbers)


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("test_item_022_wrong_offset", {22}),
        ("test_items_123_124_limits", {123, 124}),
        ("test_items_005_to_007_009_versions", {5, 6, 7, 9}),
        ("test_item_173_10001_parts", {173}),
        ("test_items_are_numbered_once", set()),
        ("test_head_022_x", set()),
    ],
)
def test_names(name: str, items: set[int]) -> None:
    """A test would count for an item that it is not about."""
    assert items_of(name) == items
