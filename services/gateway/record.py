"""A state as the fields of its hash in Redis, and back. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from services.gateway.state import LARGEST, LATEST_MS, ProgressState
from shared.times import rfc3339

__all__ = ["JOB_FIELDS", "from_fields", "to_fields"]

_TIMES: Final = ("started_at", "last_updated", "completed_at", "job_updated")
_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(ProgressState))
JOB_FIELDS: Final = frozenset(
    {
        *("job_seq", "job_status", "stage", "job_progress", "message", "current", "total"),
        *("result", "job_error_code", "job_updated", "job_updated_ms"),
    }
)
"""The fields of the job's half; all others are the upload's."""
_OBJECTS: Final = {"metadata", "result"}
_encoder: Final = msgspec.json.Encoder()


def to_fields(state: ProgressState) -> dict[str, str]:
    """Return the fields of the projection's hash, as the contract names and writes them."""
    fields = {
        "percentage": str(state.percentage),
        "estimated_completion": state.estimated_completion or "",
    }
    for name in _FIELDS:
        value = getattr(state, name)
        if name in _TIMES:
            fields[name] = rfc3339(value) if value is not None else ""
            fields[f"{name}_ms"] = "" if value is None else str(value)
        elif name in _OBJECTS:
            fields[name] = "" if value is None else _encoder.encode(value).decode()
        else:
            fields[name] = "" if value is None else str(value)
    return fields


def from_fields(fields: Mapping[bytes, bytes]) -> ProgressState | None:
    """Return the state in a hash; ``None`` if there is none, or it is not one of ours."""
    try:
        state = msgspec.convert(_values(fields), ProgressState, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    times = (
        *(state.started_at, state.last_updated),
        *(state.completed_at or 0, state.job_updated or 0),
    )
    sizes = (state.bytes_uploaded, state.total_bytes or 0)
    sane = min(*times, *sizes) >= 0 and max(times) <= LATEST_MS and max(sizes) <= LARGEST
    finite = math.isfinite(state.upload_speed) and math.isfinite(state.job_progress or 0.0)
    return state if sane and finite else None


def _values(fields: Mapping[bytes, bytes]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name in _FIELDS:
        key = f"{name}_ms" if name in _TIMES else name
        text = fields.get(key.encode(), b"")
        if text and name in _OBJECTS:
            values[name] = msgspec.json.decode(text)
        elif text or name in _TEXTS:
            values[name] = text.decode()
        elif name not in _WITH_DEFAULT:
            values[name] = None
    return values


_WITH_DEFAULT: Final = {"metadata", "job_seq"}
_TEXTS: Final = {
    *("filename", "content_type", "session_id", "user_id", "tenant", "status", "client_name"),
}
