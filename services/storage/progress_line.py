"""Shows how far a command is, on stderr: a line that grows on a terminal, else now and then."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

__all__ = ["ProgressLine"]

_WIDTH: Final = 30
_TERMINAL_S: Final = 0.2
_LOG_S: Final = 10.0


class ProgressLine:
    """One line of progress.

    Args:
        out: Where it is shown.

    """

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out: Final = out
        self._is_terminal: Final = out.isatty()
        self._next_at = 0.0 if self._is_terminal else time.monotonic() + _LOG_S

    def show(self, fraction: float, text: str) -> None:
        """Show how much is done, from 0 to 1, if the last time is a while ago."""
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + (_TERMINAL_S if self._is_terminal else _LOG_S)
        filled = int(fraction * _WIDTH)
        if self._is_terminal:
            self._write(f"\r[{'#' * filled}{' ' * (_WIDTH - filled)}] {text}\x1b[K")
        else:
            self._write(f"{fraction:4.0%} {text}\n")

    def clear(self) -> None:
        """Make room for other output on a terminal."""
        if self._is_terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
