"""Dialect *jobs*: jobs by their own ids, more by subscription (seed document 004).

All members of a message are always there, as those of the document's model are (004:33 to 39);
``progress`` is a number also before the job has begun, since its clients print it. A job is
``failed`` too where its upload has ended without a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

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
from shared.times import Timestamp, now_ms, rfc3339

__all__ = ["Jobs"]

_encoder: Final = msgspec.json.Encoder()


class _FromClient(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    token: (
        Annotated[str, msgspec.Meta(description="A newer token of the same caller")]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class JobsAuthenticate(_FromClient, frozen=True, tag="authenticate"):
    """Say who is calling; also to go on when the token is about to end."""

    token: str


class JobsSubscribe(_FromClient, frozen=True, tag="subscribe"):
    """Watch a job as well."""

    job_id: str


class JobsUnsubscribe(_FromClient, frozen=True, tag="unsubscribe"):
    """Watch a job no more."""

    job_id: str


class JobsPing(_FromClient, frozen=True, tag="ping"):
    """Ask for a sign of life."""


class JobsMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What more is known of a job."""

    upload_id: str
    filename: str
    stage: str | msgspec.UnsetType = msgspec.UNSET
    current: int | msgspec.UnsetType = msgspec.UNSET
    total: int | msgspec.UnsetType = msgspec.UNSET
    result: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    error_code: str | msgspec.UnsetType = msgspec.UNSET


class JobsUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job is: at the beginning, and whenever that changes."""

    job_id: str | None
    status: Literal["pending", "queued", "in_progress", "completed", "failed"]
    progress: Annotated[float, msgspec.Meta(description="Percent")]
    message: Annotated[str | None, msgspec.Meta(description="The worker's last word")]
    timestamp: Timestamp
    metadata: JobsMetadata


class _Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    job_id: str | None
    status: None
    progress: None
    timestamp: Timestamp


class JobsAuthenticated(_Answer, frozen=True, kw_only=True, tag="authenticated"):
    """The token is good."""

    message: str


class JobsSubscribed(_Answer, frozen=True, kw_only=True, tag="subscribed"):
    """The job is watched; its state has come before."""


class JobsUnsubscribed(_Answer, frozen=True, kw_only=True, tag="unsubscribed"):
    """The job is not watched any more."""


class JobsPong(_Answer, frozen=True, kw_only=True, tag="pong"):
    """A sign of life."""


class JobsHeartbeat(_Answer, frozen=True, kw_only=True, tag="heartbeat"):
    """Nothing has happened for a while."""


class JobsError(_Answer, frozen=True, kw_only=True, tag="error"):
    """A message was not obeyed; the socket may be closed after it."""

    message: str


class Jobs(Dialect):
    """``{"job_id","status","progress","message","timestamp","metadata"}``."""

    name = "jobs"
    paths = ("/progress/ws/{job_id}",)
    receives = (JobsAuthenticate, JobsSubscribe, JobsUnsubscribe, JobsPing)
    sends = (
        *(JobsUpdate, JobsAuthenticated, JobsSubscribed, JobsUnsubscribed),
        *(JobsPong, JobsHeartbeat, JobsError),
    )
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
        """Return an answer, with the job that it is about, if it is about one.

        The document's clients print status and progress of whatever comes (004:212 and 226): in
        what tells of neither they are there, too, or the first heartbeat would end a client.
        """
        about = {"type": kind, "job_id": subject or None, "status": None, "progress": None}
        return _encoder.encode({**data, **about, "timestamp": rfc3339(now_ms())})

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
