"""What goes wrong between the store and S3: nothing acknowledged is lost, nothing is mixed up.

Item 173 names the faults of other servers' S3 stores; each of them is a test here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from msgspec.structs import replace

from shared.blobs.s3 import S3Store
from shared.blobs.s3_calls import Outdated, S3Failed
from tests.s3_proxy import Call, Fate
from tests.shared.blobs.conformance import (
    content,
    ended,
    finished,
    opened,
    pattern,
    stored_file,
    writing,
)
from tests.shared.blobs.s3_bench import PART, Bench, append, keys, sized
from tests.shared.samples import new_sidecar


class Life:
    """An upload that a client makes, in three requests; it may break anywhere."""

    def __init__(self, body: bytes) -> None:
        self.body: Final = body
        self.sidecar: Final = sized(body)
        self.acknowledged: int | None = None
        """``None`` until the creation was answered."""

    async def run(self, store: S3Store) -> None:
        """Live; raises what the store raises."""
        await store.create(self.sidecar)
        self.acknowledged = 0
        size = len(self.body)
        for upto in (300, size // 2, size):
            async with writing(store, self.sidecar.upload_id) as writer:
                assert writer.offset == self.acknowledged
                self.acknowledged = await append(writer, self.body, upto)
                if upto == size:
                    await writer.finish(finished(writer.sidecar))

    async def recover(self, store: S3Store) -> None:
        """Go on where it broke, as the client would, to the end."""
        upload_id = self.sidecar.upload_id
        async with writing(store, upload_id) as writer:
            assert writer.offset >= (self.acknowledged or 0)
            await append(writer, self.body, len(self.body))
            if writer.sidecar.status == "created":
                await writer.finish(finished(writer.sidecar))
        stored = await store.read(upload_id)
        assert (stored.offset, stored.visible) == (len(self.body), True)
        assert await content(store, upload_id) == self.body


async def crash_at(bench: Bench, number: int, fate: Fate, body: bytes) -> bool:
    """Let a life end at a call, check what is left, and go on; return whether it came there."""
    life = Life(body)
    store = bench.store()
    await store.open()
    first = len(bench.proxy.calls) + number

    def decide(call: Call) -> Fate:
        if call.number < first:
            return "pass"
        return fate if call.number == first else "drop"

    bench.proxy.decide = decide
    try:
        await life.run(store)
    except OSError as exc:
        assert not isinstance(exc, ConnectionError | TimeoutError)  # noqa: PT017
    ended_early = len(bench.proxy.calls) >= first
    bench.proxy.decide = lambda _: "pass"
    await store.close()
    bench.registry.holders.clear()  # the leases of the dead run out
    async with opened(bench.store(direct=True, patience_s=5)) as heir:
        if life.acknowledged is not None:
            await life.recover(heir)
            upload_id = life.sidecar.upload_id
            await heir.sweep_leftovers(older_than_s=0, dry_run=False)
            left = {one for one in await keys(heir) if upload_id in one}
            assert left == {upload_id, f"{upload_id}.info"}
            assert await heir.client.uploads(heir.keys.blob(upload_id)) == []
    return ended_early


async def crash_everywhere(bench: Bench, fate: Fate, body: bytes) -> int:
    """Let lives end at each of their calls; return how many there are."""
    number = 1
    while await crash_at(bench, number, fate, body):
        number += 1
    return number - 1


async def test_a_crash_after_the_last_calls(moto_bench: Bench) -> None:
    """Item 173: what was acknowledged outlives a crash at each step that makes the file."""
    body = pattern(3 * PART + 77)
    async with opened(moto_bench.store()) as store:
        before = len(moto_bench.proxy.calls)
        await Life(body).run(store)
    kinds = [one.kind for one in moto_bench.proxy.calls[before:]]
    completion = kinds.index("POST uploadId")
    record = completion + kinds[completion:].index("GET list-type")
    assert "PUT" in kinds[completion:record]
    for index in (kinds.index("PUT uploadId partNumber"), completion, record - 1, record + 1):
        assert await crash_at(moto_bench, index + 1, "lose", body)


@pytest.mark.slow
async def test_a_crash_after_any_call(moto_bench: Bench) -> None:
    """Item 173: wherever a process dies, what it acknowledged is there and the rest follows."""
    assert await crash_everywhere(moto_bench, "lose", pattern(3 * PART + 77)) > 30


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fate", ["drop", "lose"])
async def test_a_crash_around_any_call(bench: Bench, fate: Fate) -> None:
    """The same on each server, with more parts, and for calls that never arrive."""
    assert await crash_everywhere(bench, fate, pattern(9 * PART + 77)) > 40


async def test_each_kind_of_call_may_be_told_to_slow_down(bench: Bench) -> None:
    """Fault 14: a 503, a cut and a lost answer to the first of each kind change nothing."""
    fates: list[Fate] = ["slow-down", "drop", "lose"]
    for fate in fates:
        seen: set[str] = set()
        bad: Fate = fate

        def decide(call: Call, seen: set[str] = seen, bad: Fate = bad) -> Fate:
            if call.kind in seen:
                return "pass"
            seen.add(call.kind)
            return bad

        life = Life(pattern(5 * PART + 77))
        async with opened(bench.store(patience_s=10)) as store:
            bench.proxy.decide = decide
            await life.run(store)
            await life.recover(store)
            async with writing(store, life.sidecar.upload_id) as writer:
                await writer.bury(ended(writer.sidecar))
            bench.proxy.decide = lambda _: "pass"
            assert await keys(store) == {f"{life.sidecar.upload_id}.info"}
            await store.client.remove([store.keys.info(life.sidecar.upload_id)])
        assert len(seen) >= 9


@pytest.mark.parametrize("fate", ["error-in-200", "lose", "slow-down"])
async def test_a_completion_that_failed_is_repeated(bench: Bench, fate: Fate) -> None:
    """Whether the server had done it or not, and whether within one call or by the next."""
    body = pattern(5 * PART + 77)
    for patience_s in (10.0, 0.0):
        failed = 0

        def decide(call: Call) -> Fate:
            nonlocal failed
            if call.kind == "POST uploadId" and failed < 2:
                failed += 1
                return fate
            return "pass"

        life = Life(body)
        async with opened(bench.store(patience_s=patience_s)) as store:
            bench.proxy.decide = decide
            try:
                await life.run(store)
            except OSError:
                assert patience_s == 0
            else:
                assert patience_s > 0
            assert failed
            bench.proxy.decide = lambda _: "pass"
            await life.recover(store)


async def test_a_missing_middle_part_moves_nothing(bench: Bench) -> None:
    """Item 173: what came behind a part that failed does not count, and never will."""
    body = pattern(8 * PART + 77)
    sidecar = sized(body)

    def decide(call: Call) -> Fate:
        return "refuse" if call.query.get("partNumber") == "2" else "pass"

    async with opened(bench.store()) as store, opened(bench.store(direct=True)) as other:
        await store.create(sidecar)
        bench.proxy.decide = decide
        async with writing(store, sidecar.upload_id) as writer:
            with pytest.raises(OSError, match="AccessDenied"):
                await append(writer, body, 5 * PART + 5)
            assert writer.offset == PART
            assert (await other.read(sidecar.upload_id)).offset == PART
            # The same request may go on: with other part numbers.
            assert await append(writer, body, 3 * PART + 9) == 3 * PART + 9
        assert (await other.read(sidecar.upload_id)).offset == 3 * PART + 9
        async with writing(store, sidecar.upload_id) as writer:
            assert await append(writer, body, len(body)) == len(body)
            await writer.finish(finished(writer.sidecar))
        assert await content(other, sidecar.upload_id) == body


async def test_a_server_that_is_away_costs_nothing(bench: Bench) -> None:
    """Fault 15: calls fail as ``OSError``, and it all goes on when the server is back."""
    body = pattern(5 * PART)
    sidecar = sized(body)
    async with opened(bench.store(patience_s=0.3)) as store:
        await store.create(sidecar)
        async with writing(store, sidecar.upload_id) as writer:
            acknowledged = await append(writer, body, 2 * PART + 100)
            bench.proxy.decide = lambda _: "drop"
            calls: list[Callable[[], Any]] = [
                lambda: append(writer, body, 4 * PART),
                lambda: store.read(sidecar.upload_id),
                lambda: store.load(sidecar.upload_id),
                lambda: store.due(older_than_s=0),
                lambda: store.note("epoch"),
                lambda: store.create(new_sidecar()),
                lambda: content(store, sidecar.upload_id),
                lambda: writer.finish(finished(sidecar)),
            ]
            for one in calls:
                with pytest.raises(S3Failed) as caught:
                    await one()
                assert not isinstance(caught.value, ConnectionError | TimeoutError)
                assert writer.offset == acknowledged
            assert not store.is_writable()
            bench.proxy.decide = lambda _: "pass"
            assert (await store.read(sidecar.upload_id)).offset == acknowledged
            assert store.is_writable()
            assert await append(writer, body, len(body)) == len(body)
            await writer.finish(finished(sidecar))
        assert await content(store, sidecar.upload_id) == body


async def test_a_download_goes_on_where_its_connection_broke(moto_bench: Bench) -> None:
    """A reader gets every byte once, whatever happens to the connections below."""
    body = pattern(3 * 1024 * 1024)
    async with opened(moto_bench.store(part_size=1024 * 1024, patience_s=10)) as store:
        sidecar = await stored_file(store, body)
        moto_bench.proxy.decide = lambda call: "lose" if call.number % 3 else "pass"
        assert await content(store, sidecar.upload_id) == body
        moto_bench.proxy.decide = lambda _: "pass"


async def test_a_tail_is_deleted_after_its_bytes_are_in_a_part(moto_bench: Bench) -> None:
    """Item 173: the server never hears of the deletion before it has the part."""
    body = pattern(2 * PART)
    sidecar = new_sidecar()
    async with opened(moto_bench.store()) as store:
        await store.create(sidecar)
        async with writing(store, sidecar.upload_id) as writer:
            await append(writer, body, PART - 1)
        async with writing(store, sidecar.upload_id) as writer:
            before = len(moto_bench.proxy.calls)
            moto_bench.proxy.decide = lambda call: (
                "refuse" if call.query.get("partNumber") else "pass"
            )
            with pytest.raises(S3Failed):
                await append(writer, body, PART + 10)
            made = [one.method for one in moto_bench.proxy.calls[before:]]
            assert "DELETE" not in made
            assert writer.offset == PART - 1
            moto_bench.proxy.decide = lambda _: "pass"
            await append(writer, body, PART + 10)
        assert (await store.read(sidecar.upload_id)).offset == PART + 10


async def test_a_record_is_not_overwritten_by_who_does_not_know_it(
    moto_bench: Bench,
) -> None:
    """A holder whose lease went to another one without its notice cannot undo what that did."""
    sidecar = new_sidecar()
    async with opened(moto_bench.store(direct=True)) as store:
        await store.create(sidecar)
        late = await store.acquire(sidecar.upload_id)
        moto_bench.registry.expire(sidecar.upload_id, noticed=False)
        async with writing(store, sidecar.upload_id) as writer:
            await writer.write([b"bytes"])
            done = finished(sidecar)
            await writer.finish(done)
        with pytest.raises(Outdated):
            await late.record(replace(sidecar, username="mallory"))
        await late.close()
        assert (await store.read(sidecar.upload_id)).sidecar == done
