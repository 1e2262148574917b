"""Dialect *jobs*: jobs by their own ids, more by subscription (seed document 004).

All members of a message are always there, as those of the document's model are (004:33 to 39);
``progress`` is a number also before the job has begun, since its clients print it. A job is
``failed`` too where its upload has ended without a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from services.gateway.dialects.protocol import (
    Dialect,
    Request,
    Subscribe,
    Told,
    Unsubscribe,
    subscription,
)
from services.gateway.state import Change, ProgressState, tells_of_processing
from shared.identity import Principal
from shared.times import now_ms, rfc3339

__all__ = ["Jobs"]

_encoder: Final = msgspec.json.Encoder()


class Jobs(Dialect):
    """``{"job_id","status","progress","message","timestamp","metadata"}``."""

    name = "jobs"
    paths = ("/progress/ws/{job_id}",)
    about_jobs = True

    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> bytes | None:
        """Return the state of the job after a change of it, or of what it depends on."""
        if not tells_of_processing(change, state):
            return None
        status = state.processing
        failed, completed = status == "failed", status == "completed"
        return _encoder.encode(
            {
                "job_id": state.job_id,
                "status": status,
                "progress": 100.0 if completed else state.job_progress or 0.0,
                "message": state.processing_trouble if failed else state.message,
                "timestamp": rfc3339(_at(state)),
                "metadata": _metadata(state),
            }
        )

    def request(self, kind: str, fields: Mapping[str, Any]) -> Request | None:
        """Return what a message asks for, by its ``type``."""
        if kind == "subscribe":
            return subscription(Subscribe, fields, "job_id")
        if kind == "unsubscribe":
            return subscription(Unsubscribe, fields, "job_id")
        return super().request(kind, fields)

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return an answer, with the job that it is about, if it is about one."""
        about = {"type": kind, "job_id": subject or None, "timestamp": rfc3339(now_ms())}
        return _encoder.encode({**data, **about})

    def heartbeat(self) -> bytes:
        """Return the sign that the connection is alive, whatever jobs it is about (004:26)."""
        return self.reply("heartbeat", subject="", caller=None, data={})


def _at(state: ProgressState) -> int:
    """Return when what the message tells of happened."""
    if state.job_updated is None or (state.processing == "failed" and not state.job_is_over):
        return state.last_updated
    return state.job_updated


def _metadata(state: ProgressState) -> dict[str, Any]:
    """Return what more is known of the job."""
    ended = state.job_is_over or state.processing in {"completed", "failed"}
    code = state.job_error_code if state.job_status == "failed" else state.error_code
    known = {
        "upload_id": state.session_id,
        "filename": state.filename,
        "stage": state.stage,
        "current": state.current,
        "total": state.total,
        "result": state.result if ended else None,
        "error_code": code,
    }
    return {name: value for name, value in known.items() if value is not None}
