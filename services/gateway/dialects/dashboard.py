"""Dialect *dashboard*: the caller's own sessions, more by subscription (seed document 000)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from services.gateway.dialects.protocol import (
    Dialect,
    GetStats,
    Malformed,
    Message,
    Ping,
    Request,
    Subscribe,
    Told,
    Unsubscribe,
    decode_object,
)
from services.gateway.state import Change, ProgressState
from shared.identity import Principal
from shared.times import now_ms, rfc3339

__all__ = ["Dashboard"]

_encoder: Final = msgspec.json.Encoder()

_KINDS: Final = {"completed": "upload_complete", "uploading": "upload_progress"}
_ERRORS: Final = {
    "cancelled": "The upload was cancelled.",
    "deleted": "The file was deleted.",
}


class Dashboard(Dialect):
    """``{"event_type","session_id","user_id","data","timestamp"}``."""

    name = "dashboard"
    paths = ("/ws/upload-progress", "/ws/upload-progress/{upload_id}")

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
            data["error_message"] = state.error_message or _ERRORS.get(
                state.status, "The upload failed."
            )
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

    def parse(self, text: str) -> Message:
        """Return what ``type`` asks for; any message may bring a ``token``."""
        fields = decode_object(text)
        if fields is None:
            return Message(Malformed("Expected a JSON object."))
        token = fields.get("token")
        if token is not None and not isinstance(token, str):
            return Message(Malformed("token must be a string."))
        kind = fields.get("type")
        if kind is not None and not isinstance(kind, str):
            return Message(Malformed("type must be a string."), token)
        if kind in {None, "authenticate"} and token is not None:
            return Message(None, token)
        return Message(self._request(kind, fields.get("session_id")), token)

    def _request(self, kind: str | None, session_id: object) -> Request:
        if kind == "ping":
            return Ping()
        if kind == "get_stats":
            return GetStats()
        if kind in {"subscribe_session", "unsubscribe_session"}:
            if not isinstance(session_id, str):
                return Malformed("session_id must be a string.")
            wanted = Subscribe if kind == "subscribe_session" else Unsubscribe
            return wanted((session_id,))
        return Malformed("Unknown message type.")

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return an answer in the envelope of the events."""
        if kind == "error":
            data = {"error_message": data.get("message"), **data}
        user_id = caller.user_id if caller is not None else ""
        return self._envelope(kind, subject, user_id, data, now_ms())
