"""The terminal of a person: how wide it is, and a line of it that tells why a command waits."""

import contextlib
import os
import time
from typing import Self

from externalresource.errors import printable

_STDERR = 2
_CLEAR = b"\r\x1b[K"


def columns(stream: int = 1) -> int:
    """Return how wide the terminal is, or is to be taken for: 80 where there is none.

    Not by `shutil`, whose import takes more than the help of a command.
    """
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream).columns or 80
    except OSError:
        return 80


class Progress:
    """One line, on stderr, replaced in place, with the time since this was made."""

    def __init__(self, stream: int = _STDERR) -> None:
        self._stream = stream
        self._begin = time.monotonic()
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Leave a clean line."""
        if self._shown:
            self._write("")

    def show(self, reason: str) -> None:
        """Show how long this waits, and why, as far as it fits."""
        text = printable(f"waiting {time.monotonic() - self._begin:.0f} s: {reason}")
        self._write(text[: columns(self._stream) - 1])
        self._shown = True

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(self._stream, _CLEAR + text.encode("utf-8", "replace"))
