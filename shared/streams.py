"""Names of the streams, the layout of their entries, and how to send commands to Redis.

Two families, both split by the upload's id: ``events:{pNN}`` holds one lifecycle event an
entry; ``progress:{pNN}`` holds many positions an entry. The braces are literal: on Redis
Cluster they spread the partitions over the slots. Commands used: Redis 7.0.

Entry of ``events``: ``i`` upload id, ``d`` event (JSON).
Entry of ``progress``: ``p`` producer, ``n`` its running number in this partition, ``i`` upload
ids joined by spaces, ``d`` the positions in the same order (JSON arrays). The ids stand apart
so that a reader can look for those it wants before it decodes the rest. Positions of jobs, if
there are any, stand beside them in ``ji`` (upload ids) and ``jd``.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisClusterException, RedisError

from shared import redis_cluster
from shared.events import (
    Bytes,
    JobProgress,
    LifecycleEvent,
    MalformedEvent,
    Millis,
    Percent,
    Seq,
    UploadProgress,
    encode,
)
from shared.redis_urls import connect

__all__ = [
    "BLOCK_MS",
    "REDIS_FAILURES",
    "ROWS",
    "Command",
    "Entry",
    "JobPosition",
    "Position",
    "ProgressEntry",
    "command",
    "connect",
    "entries_of",
    "event_entry",
    "event_stream",
    "is_event_stream",
    "job_positions_in",
    "job_progress_of",
    "pack_positions",
    "partition_in",
    "partition_of",
    "pipelined",
    "positions_in",
    "progress_of",
    "progress_stream",
    "read_ids",
    "retry_delay",
    "server_runs",
    "stream_names",
]

REDIS_FAILURES: Final = (RedisError, RedisClusterException, OSError, EOFError)
"""What any command may raise while Redis is away, restarting or failing over."""

BLOCK_MS: Final = 1_000
"""How long one read waits for entries; must stay well below the socket timeout."""

_BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

Command = tuple[str | bytes | int | float, ...]
"""One Redis command with its arguments."""

Entry = tuple[bytes, dict[bytes, bytes]]
"""An entry's id and its fields. A trimmed entry that is still pending has no fields."""


def retry_delay(failures: int, *, longest_s: float = 1.0) -> float:
    """Return how long to wait before the next try, in seconds, spread at random by a half.

    Args:
        failures: Tries that failed in a row before the last one; 0 waits least.
        longest_s: The wait stops growing there.

    """
    steps = [step for step in _BACKOFF_S if step <= longest_s]
    delay = steps[min(failures, len(steps) - 1)]
    return delay * random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries, no secret


async def command(redis: Redis, *parts: object) -> Any:
    """Send one command and return its reply."""
    if redis_cluster.is_cluster(redis):
        return await redis_cluster.run(redis, parts)
    return await redis.execute_command(*parts)  # type: ignore[no-untyped-call]


async def pipelined(
    redis: Redis, commands: Iterable[Command], *, raise_on_error: bool = True
) -> list[Any]:
    """Send the commands in one write and return their raw replies, in order.

    Not a transaction. With ``raise_on_error=False`` a refused command's reply is its error.
    On a cluster each node gets its part at the same time: the order holds within a slot.
    """
    if redis_cluster.is_cluster(redis):
        replies = await redis_cluster.run_pipelined(redis, commands)
        refusal = next((one for one in replies if isinstance(one, Exception)), None)
        if raise_on_error and refusal is not None:
            raise refusal
        return replies
    pipe = redis.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)
    return await pipe.execute(raise_on_error=raise_on_error)


async def server_runs(redis: Redis) -> str:
    """Return a word that stays the same while no server restarts, is swapped or takes over."""
    if redis_cluster.is_cluster(redis):
        told: dict[str, Any] = await redis.info("server", target_nodes=redis.PRIMARIES)
        return "+".join(sorted(str(one["run_id"]) for one in told.values()))
    return str((await redis.info("server"))["run_id"])


def partition_of(upload_id: str, partitions: int) -> int:
    """Return the partition of an upload: stable over processes, builds and machines."""
    return zlib.crc32(upload_id.encode()) % partitions


def event_stream(partition: int) -> str:
    """Return the key of a lifecycle stream."""
    return f"events:{{p{partition:02d}}}"


def is_event_stream(key: str) -> bool:
    """Tell whether a key is that of a lifecycle stream."""
    return key.startswith("events:")


def partition_in(stream: str) -> int:
    """Return the partition that a key of either family is of.

    Raises:
        ValueError: It is no such key.

    """
    return int(stream.partition("{p")[2].removesuffix("}"))


def progress_stream(partition: int) -> str:
    """Return the key of a progress stream."""
    return f"progress:{{p{partition:02d}}}"


def stream_names(partitions: int) -> list[str]:
    """Return all keys of both families."""
    numbers = range(partitions)
    return [event_stream(n) for n in numbers] + [progress_stream(n) for n in numbers]


def flat_dict(flat: Sequence[bytes] | None) -> dict[bytes, Any]:
    """Return a flat reply ``[key, value, key, value]`` as a dict; ``None`` is empty."""
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}


def entry_of(raw: Sequence[Any]) -> Entry:
    """Return one entry of a raw reply."""
    return raw[0], flat_dict(raw[1])


def entries_of(reply: object) -> list[tuple[str, list[Entry]]]:
    """Return the raw reply to XREAD or XREADGROUP as entries by key."""
    pairs = cast("Sequence[tuple[bytes, Sequence[Any]]]", reply or ())
    return [(key.decode(), [entry_of(raw) for raw in entries]) for key, entries in pairs]


def entry_order(entry_id: bytes) -> tuple[int, int]:
    """Return an entry id as a pair that sorts as Redis sorts ids."""
    millis, _, number = entry_id.partition(b"-")
    return int(millis), int(number or 0)


class Position(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How an upload's position stands in an entry, without its id."""

    seq: Seq
    at: Millis
    offset: Bytes
    size: Bytes | None
    speed: float


class JobPosition(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How the position of a job stands in an entry, without its upload's id."""

    job_id: str
    seq: Seq
    at: Millis
    progress: Percent
    stage: str = ""
    message: str = ""
    current: int | None = None
    total: int | None = None


class ProgressEntry(msgspec.Struct, frozen=True):
    """One entry of a progress stream, its positions not decoded yet."""

    producer: bytes
    number: int
    ids: list[bytes]
    body: bytes
    job_ids: list[bytes] = []
    """Uploads whose jobs have come further."""
    job_body: bytes = b"[]"


_Row = TypeVar("_Row")
_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(list[Position])
_job_decoder: Final = msgspec.json.Decoder(list[JobPosition])
ROWS: Final[Mapping[str, Any]] = {"d": list[Position], "jd": list[JobPosition]}
"""What the JSON in the fields of a progress entry is, for descriptions."""


def event_entry(event: LifecycleEvent, partitions: int) -> Command:
    """Return the command that puts an event on its stream."""
    stream = event_stream(partition_of(event.upload_id, partitions))
    return ("XADD", stream, "*", "i", event.upload_id, "d", encode(event))


def pack_positions(
    producer: str, number: int, positions: Iterable[UploadProgress | JobProgress]
) -> Command:
    """Return the fields of one entry that holds all the positions, as XADD takes them."""
    chosen = list(positions)
    uploads = [one for one in chosen if isinstance(one, UploadProgress)]
    ids = " ".join(one.upload_id for one in uploads)
    rows = [Position(o.seq, o.at, o.offset, o.size, round(o.speed, 1)) for o in uploads]
    fields = ("p", producer, "n", number, "i", ids, "d", _encoder.encode(rows))
    jobs = [one for one in chosen if isinstance(one, JobProgress)]
    if not jobs:
        return fields
    job_ids = " ".join(one.upload_id for one in jobs)
    job_rows = [
        JobPosition(
            *(o.job_id, o.seq, o.at, round(o.progress, 2)),
            *(o.stage, o.message, o.current, o.total),
        )
        for o in jobs
    ]
    return (*fields, "ji", job_ids, "jd", _encoder.encode(job_rows))


def read_ids(fields: Mapping[bytes, bytes]) -> ProgressEntry:
    """Return an entry with its ids in clear.

    Raises:
        MalformedEvent: A field is missing or has the wrong shape.

    """
    try:
        if not (fields[b"i"].isascii() and fields.get(b"ji", b"").isascii()):
            raise ValueError("an id that is not ASCII")
        return ProgressEntry(
            *(fields[b"p"], int(fields[b"n"]), fields[b"i"].split(), fields[b"d"]),
            *(fields.get(b"ji", b"").split(), fields.get(b"jd", b"[]")),
        )
    except (KeyError, ValueError) as exc:
        raise MalformedEvent(f"progress entry: {exc!r}") from exc


def positions_in(entry: ProgressEntry) -> Iterable[tuple[bytes, Position]]:
    """Return the positions of uploads as they stand in an entry, each with its upload's id.

    Raises:
        MalformedEvent: The body is not what the ids say.

    """
    return zip(entry.ids, _rows(_decoder, entry.body, len(entry.ids)), strict=True)


def job_positions_in(entry: ProgressEntry) -> Iterable[tuple[bytes, JobPosition]]:
    """Return the positions of jobs, each with its upload's id.

    Raises:
        MalformedEvent: As for ``positions_in``.

    """
    if not entry.job_ids:
        return ()
    return zip(
        entry.job_ids, _rows(_job_decoder, entry.job_body, len(entry.job_ids)), strict=True
    )


def _rows(decoder: msgspec.json.Decoder[list[_Row]], body: bytes, count: int) -> list[_Row]:
    try:
        rows = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedEvent(f"progress entry: {exc}") from exc
    if len(rows) != count:
        raise MalformedEvent(f"progress entry: {count} ids, {len(rows)} positions")
    return rows


def progress_of(upload_id: bytes, row: Position) -> UploadProgress:
    """Return an upload's position as the event that was packed."""
    return UploadProgress(
        upload_id=upload_id.decode(),
        seq=row.seq,
        at=row.at,
        offset=row.offset,
        size=row.size,
        speed=row.speed,
    )


def job_progress_of(upload_id: bytes, row: JobPosition) -> JobProgress:
    """Return the position of a job as the event that was packed."""
    return JobProgress(upload_id=upload_id.decode(), **msgspec.structs.asdict(row))
