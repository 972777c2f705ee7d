"""What a script that waits tells a person at a terminal: one line, replaced in place. In a pipe, if asked, one line."""

import contextlib
import os
import signal
import time

#: Begins the line of a log. The driver, which reads it, passes that on.
WAITING = "nvidia-gpu-discovery: waiting: "
_STDERR = 2
_CLEAR = b"\r\x1b[K"


class Progress:
    """The line, with the time since this was made: on stderr, or on the terminal of whoever reads our stderr.

    If what was named as the terminal is none, it gets one line, once.
    """

    def __init__(self, terminal: str | None = None) -> None:
        self._begin = time.monotonic()
        self._shown = False
        self._told = terminal is None
        self._out = _STDERR if terminal is None else _open(terminal)

    def show(self, reason: str) -> None:
        """Show how long this waits, and why, as far as it fits."""
        try:
            columns = os.get_terminal_size(self._out).columns or 80
        except OSError:  # no terminal
            self._tell(reason)
            return
        text = _plain(f"waiting {time.monotonic() - self._begin:.0f} s: {reason}")
        self._write(_CLEAR + text[: columns - 1].encode("utf-8", "replace"))
        self._shown = True

    def clear(self) -> None:
        """Leave a clean line."""
        if self._shown:
            self._write(_CLEAR)

    def _tell(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._write(_plain(f"{WAITING}{reason}").encode("utf-8", "replace") + b"\n")

    def _write(self, text: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._out, text)


def _plain(text: str) -> str:
    """Return it as one line that commands no terminal: programs may have any name."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _open(terminal: str) -> int:
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # we are not in its foreground, and some forbid others to write
    try:
        return os.open(terminal, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return _STDERR
