"""What a script that waits tells a person at a terminal: one line, replaced in place; nothing in a pipe."""

import contextlib
import os
import time

_STDERR = 2
_CLEAR = b"\r\x1b[K"


class Progress:
    """The line, with the time since this was made."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._shown = False

    def show(self, reason: str) -> None:
        """Show how long this waits, and why, as far as it fits."""
        try:
            columns = os.get_terminal_size(_STDERR).columns or 80
        except OSError:  # no terminal
            return
        text = f"waiting {time.monotonic() - self._begin:.0f} s: {reason}"
        plain = "".join(letter if letter.isprintable() else "?" for letter in text)  # programs may have any name
        self._write(_CLEAR + plain[: columns - 1].encode("utf-8", "replace"))
        self._shown = True

    def clear(self) -> None:
        """Leave a clean line."""
        if self._shown:
            self._write(_CLEAR)

    @staticmethod
    def _write(text: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(_STDERR, text)
