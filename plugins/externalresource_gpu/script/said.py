"""What the script and the driver say: of a decision in plain lines and in the log file, of the wait at a terminal."""

import os
import time

_STDERR = 2
_CLEAR = b"\r\x1b[K"


def line(text: str) -> bytes:
    """Return the text as one line that commands no terminal, whatever a path or the name of a program brought in."""
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(text.splitlines()))
    return plain.encode() + b"\n"


def log(path: str | None, asker: int, decision: str) -> str | None:
    """Append what was decided for a process to the log file, if there is one. Return why that failed."""
    if path is None:
        return None
    written = line(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} asked by pid {asker}: {decision}")
    try:
        # A pipe that nobody reads would block here, after the answer, until Flink kills us and loses the devices.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
        try:
            os.write(descriptor, written)
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"cannot write to the log file {path}: {error.strerror}"
    return None


class Progress:
    """A line for a person at a terminal, replaced in place, with the time since this was made."""

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
