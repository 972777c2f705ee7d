"""What a script that waits tells a person at a terminal: one line on stderr, replaced in place."""

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
        """Show how long this waits, and why, as far as it fits: nothing where stderr is no terminal."""
        try:
            columns = os.get_terminal_size(_STDERR).columns or 80
        except OSError:
            return
        text = f"waiting {time.monotonic() - self._begin:.0f} s: {reason}"
        plain = "".join(letter if letter.isprintable() else "?" for letter in text)  # programs may have any name
        self._write(_CLEAR + plain[: columns - 1].encode("utf-8", "replace"))
        self._shown = True

    def clear(self) -> None:
        """Leave a clean line."""
        if self._shown:
            self._write(_CLEAR)

    def _write(self, text: bytes) -> None:
        try:  # noqa: SIM105 - contextlib costs the script a millisecond
            os.write(_STDERR, text)
        except OSError:
            pass
