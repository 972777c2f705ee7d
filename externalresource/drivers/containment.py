"""What a plugin does beyond its part while it is imported or asked: it takes long, or it prints."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from externalresource.errors import warn


@contextmanager
def watched(seconds: float, what: str) -> Iterator[None]:
    """Say in the log that the block, which is `what`, takes long. Nothing here can end it.

    A module may need the main thread for its import, so that is not moved to another one.
    """
    import threading

    watch = threading.Timer(seconds, warn, [f"{what} has not ended after {seconds:g} s, and nothing here can end it"])
    watch.daemon = True
    with suppress(RuntimeError):  # a subinterpreter may have no such threads
        watch.start()
    try:
        yield
    finally:
        watch.cancel()
        with suppress(RuntimeError):
            watch.join()  # or a fork would find a second thread


@contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Let all that this process and its children print in the block go to stderr, whoever prints it and how.

    Only for a process that has nothing else to print at that time: stdout is that of all its threads.
    """
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started us: its number may be another file's now
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
