"""Dialect *media*: one upload a socket, flat messages (seed document 001)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from services.gateway.dialects.protocol import Dialect, Told
from services.gateway.state import Change, ProgressState
from shared.identity import Principal

__all__ = ["Media"]

_encoder: Final = msgspec.json.Encoder()

_ENDS: Final = {
    "completed": ("complete", "completed"),
    "error": ("error", "failed"),
    "cancelled": ("error", "failed"),
    "deleted": ("error", "failed"),
}


class MediaAuthenticate(msgspec.Struct, frozen=True):
    """Say who is calling."""

    token: str


class MediaPing(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    """Ask for a sign of life."""


class _Numbers(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    upload_id: str
    progress: Annotated[float, msgspec.Meta(description="Percent")]
    bytes_sent: int
    total_size: Annotated[
        int, msgspec.Meta(description="Bytes; 0 while the client defers the length")
    ]


class MediaCreated(_Numbers, frozen=True, kw_only=True, tag="created"):
    """The upload was opened; nothing has come yet."""

    status: Literal["created"]


class MediaProgress(_Numbers, frozen=True, kw_only=True, tag="progress"):
    """The upload is under way."""

    status: Literal["uploading"]


class MediaComplete(_Numbers, frozen=True, kw_only=True, tag="complete"):
    """All bytes are safe."""

    status: Literal["completed"]


class MediaError(_Numbers, frozen=True, kw_only=True, tag="error"):
    """The upload has led to nothing, or a message was not obeyed."""

    status: Literal["failed"]
    message: str


class MediaPong(msgspec.Struct, frozen=True, tag_field="type", tag="pong"):
    """A sign of life."""

    upload_id: str


class MediaAuthenticated(msgspec.Struct, frozen=True, tag_field="type", tag="authenticated"):
    """The token is good."""

    upload_id: str
    message: str


class Media(Dialect):
    """``{"type","upload_id","progress","bytes_sent","total_size","status","message"?}``."""

    name = "media"
    paths = ("/api/v1/ws/{upload_id}",)
    receives = (MediaAuthenticate, MediaPing)
    sends = (
        *(MediaCreated, MediaProgress, MediaComplete, MediaError),
        *(MediaPong, MediaAuthenticated),
    )

    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> bytes | None:
        """Return the message about a change; what follows the upload has none here."""
        if change.of_job or change is Change.STORED:
            return None
        if state.status in _ENDS:
            kind, status = _ENDS[state.status]
        elif change is Change.CREATED or (
            change is Change.SNAPSHOT and not state.bytes_uploaded
        ):
            kind, status = "created", "created"
        else:
            kind, status = "progress", "uploading"
        return self._message(
            kind,
            state.session_id,
            status,
            state.trouble if kind == "error" else None,
            progress=state.percentage,
            bytes_sent=state.bytes_uploaded,
            total_size=state.total_bytes or 0,
        )

    def _message(
        self,
        kind: str,
        upload_id: str,
        status: str,
        message: str | None,
        *,
        progress: float = 0.0,
        bytes_sent: int = 0,
        total_size: int = 0,
    ) -> bytes:
        fields: dict[str, Any] = {
            "type": kind,
            "upload_id": upload_id,
            "progress": progress,
            "bytes_sent": bytes_sent,
            "total_size": total_size,
            "status": status,
        }
        if message is not None:
            fields["message"] = message
        return _encoder.encode(fields)

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return an error in the form of the document, or a ``pong``."""
        if kind == "error":
            return self._message("error", subject, "failed", data.get("message"))
        return _encoder.encode({"type": kind, "upload_id": subject, **data})
