"""What a file system store finds by looking through its folders. Blocking."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from shared.blobs.store import Due
from shared.sidecar import is_upload_id

__all__ = ["due_events", "ids_in", "live_and_recent", "read_note", "write_note"]


def due_events(folder: Path, before: float) -> list[Due]:
    """Return the events that have had a marker since a time (UTC, seconds)."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                upload_id, _, seq = entry.name.partition(".")
                is_marker = is_upload_id(upload_id) and seq.isdecimal()
                if is_marker and entry.stat().st_mtime <= before:
                    found.append(Due(upload_id, int(seq)))
    return sorted(found)


def ids_in(folder: Path, suffix: str) -> list[str]:
    """Return the ids of the uploads that have a file with this suffix in a folder."""
    stems = (one.removesuffix(suffix) for one in os.listdir(folder) if one.endswith(suffix))
    return [one for one in stems if is_upload_id(one)]


def live_and_recent(folders: Sequence[Path], since: float) -> list[str]:
    """Return the ids of uploads that grow or whose record changed since (UTC, seconds)."""
    found = set()
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, _, suffix = entry.name.partition(".")
                with contextlib.suppress(FileNotFoundError):
                    recent = suffix == "info" and entry.stat().st_mtime >= since
                    if suffix == "part" or recent:
                        found.add(stem)
    return [one for one in found if is_upload_id(one)]


def read_note(path: Path) -> str:
    """Return the text of a file; empty if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""


def write_note(path: Path, text: str) -> None:
    """Replace the text of a file, at once or not at all."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)
