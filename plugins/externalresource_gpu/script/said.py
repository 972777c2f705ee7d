"""What the script and the driver say of a decision: in plain lines, and in the log file of whoever wants one."""

import os
import time


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
