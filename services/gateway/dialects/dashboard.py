"""Dialect *dashboard*: the caller's own sessions, more by subscription (seed document 000)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from services.gateway.dialects.protocol import (
    Dialect,
    GetStats,
    Request,
    Subscribe,
    Told,
    Unsubscribe,
    subscription,
)
from services.gateway.state import Change, ProgressState
from shared.identity import Principal
from shared.times import Timestamp, now_ms, rfc3339

__all__ = ["Dashboard"]

_encoder: Final = msgspec.json.Encoder()

_KINDS: Final = {"completed": "upload_complete", "uploading": "upload_progress"}


class _FromClient(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    token: (
        Annotated[str, msgspec.Meta(description="A newer token of the same caller")]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class DashboardAuthenticate(_FromClient, frozen=True, tag="authenticate"):
    """Say who is calling; also to go on when the token is about to end."""

    token: str


class DashboardSubscribe(_FromClient, frozen=True, tag="subscribe_session"):
    """Watch a session as well."""

    session_id: str


class DashboardUnsubscribe(_FromClient, frozen=True, tag="unsubscribe_session"):
    """Watch a session no more."""

    session_id: str


class DashboardPing(_FromClient, frozen=True, tag="ping"):
    """Ask for a sign of life."""


class DashboardGetStats(_FromClient, frozen=True, tag="get_stats"):
    """Ask for the socket's own figures."""


class DashboardNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """How far a session is."""

    percentage: float
    bytes_uploaded: int
    total_bytes: Annotated[
        int | None, msgspec.Meta(description="`null` while the client defers the length")
    ]
    upload_speed: Annotated[float, msgspec.Meta(description="Bytes per second, smoothed")]
    estimated_completion: Annotated[
        Timestamp | None, msgspec.Meta(description="`null` while it cannot be known")
    ]


class DashboardEnd(DashboardNumbers, frozen=True, kw_only=True):
    """Where a session has led to."""

    video_id: str | None
    analysis_id: str | None
    redirect_url: str | None


class DashboardFault(DashboardNumbers, frozen=True, kw_only=True):
    """Why a session has led to nothing."""

    error_message: str
    error_code: str | None


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, tag_field="event_type"):
    session_id: str
    user_id: str
    timestamp: Timestamp


class DashboardProgress(_Envelope, frozen=True, kw_only=True, tag="upload_progress"):
    """A session is under way."""

    data: DashboardNumbers


class DashboardComplete(_Envelope, frozen=True, kw_only=True, tag="upload_complete"):
    """All bytes of a session are safe."""

    data: DashboardEnd


class DashboardFailed(_Envelope, frozen=True, kw_only=True, tag="upload_error"):
    """A session failed, was cancelled or ran out, or its file is gone."""

    data: DashboardFault


class DashboardText(msgspec.Struct, frozen=True):
    """Words for people."""

    message: str


class DashboardErrorText(msgspec.Struct, frozen=True):
    """Words for people, under both names."""

    error_message: str
    message: str


class DashboardCounts(msgspec.Struct, frozen=True):
    """A socket's own figures."""

    subscriptions: int


class DashboardNothing(msgspec.Struct, frozen=True):
    """Nothing more to say."""


class DashboardAuthenticated(_Envelope, frozen=True, kw_only=True, tag="authenticated"):
    """The token is good."""

    data: DashboardText


class DashboardSubscribed(_Envelope, frozen=True, kw_only=True, tag="subscribed"):
    """The session is watched; its state comes along."""

    data: DashboardNothing


class DashboardUnsubscribed(_Envelope, frozen=True, kw_only=True, tag="unsubscribed"):
    """The session is not watched any more."""

    data: DashboardNothing


class DashboardPong(_Envelope, frozen=True, kw_only=True, tag="pong"):
    """A sign of life."""

    data: DashboardNothing


class DashboardStats(_Envelope, frozen=True, kw_only=True, tag="stats"):
    """The socket's own figures."""

    data: DashboardCounts


class DashboardError(_Envelope, frozen=True, kw_only=True, tag="error"):
    """A message was not understood, or not obeyed; the socket may be closed after it."""

    data: DashboardErrorText


class Dashboard(Dialect):
    """``{"event_type","session_id","user_id","data","timestamp"}``."""

    name = "dashboard"
    paths = ("/ws/upload-progress", "/ws/upload-progress/{upload_id}")
    receives = (
        *(DashboardAuthenticate, DashboardSubscribe, DashboardUnsubscribe),
        *(DashboardPing, DashboardGetStats),
    )
    sends = (
        *(DashboardProgress, DashboardComplete, DashboardFailed),
        *(DashboardAuthenticated, DashboardSubscribed, DashboardUnsubscribed),
        *(DashboardPong, DashboardStats, DashboardError),
    )

    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> bytes | None:
        """Return the event about a change; processing has its own documents."""
        if change.of_job or change is Change.STORED:
            return None
        kind = _KINDS.get(state.status, "upload_error")
        data: dict[str, Any] = {
            "percentage": state.percentage,
            "bytes_uploaded": state.bytes_uploaded,
            "total_bytes": state.total_bytes,
            "upload_speed": round(state.upload_speed, 1),
            "estimated_completion": state.estimated_completion,
        }
        if kind == "upload_complete":
            data["video_id"] = state.video_id
            data["analysis_id"] = state.analysis_id
            data["redirect_url"] = state.redirect_url
        elif kind == "upload_error":
            data["error_message"] = state.trouble
            data["error_code"] = state.error_code
        return self._envelope(kind, state.session_id, state.user_id, data, state.last_updated)

    def _envelope(
        self, kind: str, session_id: str, user_id: str, data: dict[str, Any], at: int
    ) -> bytes:
        return _encoder.encode(
            {
                "event_type": kind,
                "session_id": session_id,
                "user_id": user_id,
                "data": data,
                "timestamp": rfc3339(at),
            }
        )

    def request(self, kind: str, fields: Mapping[str, Any]) -> Request | None:
        """Return what a message asks for, by its ``type``."""
        if kind == "subscribe_session":
            return subscription(Subscribe, fields, "session_id")
        if kind == "unsubscribe_session":
            return subscription(Unsubscribe, fields, "session_id")
        return GetStats() if kind == "get_stats" else super().request(kind, fields)

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return an answer in the envelope of the events."""
        if kind == "error":
            data = {"error_message": data.get("message"), **data}
        user_id = caller.user_id if caller is not None else ""
        return self._envelope(kind, subject, user_id, data, now_ms())
