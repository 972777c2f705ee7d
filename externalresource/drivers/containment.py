"""What a plugin does beyond its part while it is imported or asked: it takes long, or it prints."""

import _thread
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from externalresource.errors import warn


@contextmanager
def watched(seconds: float, what: str) -> Iterator[None]:
    """Say in the log that the block, which is `what`, takes long. Nothing here can end it.

    A module may need the main thread for its import, so that is not moved to another one.
    """
    ended, gone = _thread.allocate_lock(), _thread.allocate_lock()

    def watch() -> None:
        if not ended.acquire(timeout=seconds):
            warn(f"{what} has not ended after {seconds:g} s, and nothing here can end it")
        gone.release()

    ended.acquire()
    gone.acquire()
    try:
        _thread.start_new_thread(watch, ())
    except RuntimeError:  # a subinterpreter may have no such threads
        gone.release()
    try:
        yield
    finally:
        ended.release()
        with gone:  # or a fork would find a second thread
            pass


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
