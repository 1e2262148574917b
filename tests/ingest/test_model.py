"""Random interleavings of all that clients, crashes and clean-ups do, on each store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from shared.sidecar import new_id
from tests.ingest.conftest import started
from tests.ingest.interleavings.ending import Uploading
from tests.ingest.interleavings.places import BucketPlace, FolderPlace, Place
from tests.processes import RedisServer, running
from tests.s3_servers import MotoServer


@pytest.fixture
def folder_place(bus: RedisServer, tmp_path: Path) -> Iterator[Place]:
    """An ingest process on a folder."""
    place = FolderPlace(bus, tmp_path)
    with started(place.ingest):
        yield place


@pytest.fixture
def bucket_place(bus: RedisServer, moto_server: MotoServer, tmp_path: Path) -> Iterator[Place]:
    """An ingest process on a place in a bucket."""
    place = BucketPlace(bus, moto_server, f"model-{new_id()}", tmp_path)
    with running(place.ingest.service):
        yield place


def play(place: Place, *, examples: int, steps: int, shrink: bool = True) -> None:
    """Play so many games of so many steps.

    A game that is lost is told as it was, or shrunk: that takes minutes.
    """
    phases = [Phase.reuse, Phase.generate, *([Phase.shrink] if shrink else [])]
    Uploading.place = place
    run_state_machine_as_test(
        Uploading,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=phases,
            print_blob=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_in_a_folder(folder_place: Place) -> None:
    """Some order of things would lose, mix up or leave behind what an upload has."""
    play(folder_place, examples=8, steps=10, shrink=False)


def test_in_a_bucket(bucket_place: Place) -> None:
    """The same on S3."""
    play(bucket_place, examples=3, steps=8, shrink=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_in_a_folder_for_long(folder_place: Place) -> None:
    """The same, many times over."""
    play(folder_place, examples=100, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_in_a_bucket_for_long(bucket_place: Place) -> None:
    """The same, many times over."""
    play(bucket_place, examples=40, steps=30)
