"""What a plugin does beyond its part while it is imported or asked: it hangs, or it prints."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Late(BaseException):
    """The block was still running at its deadline. No Exception: a plugin's import may catch those."""


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise Late in the block if it takes longer.

    A module may need the main thread for its import, so it is not moved to another one: the alarm signal comes to it.
    Another thread, and a program that uses that signal itself, get no bound; nor does a hang in C that takes no signal.
    """

    def ring(_signal: int, _frame: object) -> None:
        raise Late

    if not _set(ring, seconds):
        yield
        return
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            if signal.getsignal(signal.SIGALRM) is ring:  # or the plugin has its own now
                signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _set(ring: "signal._HANDLER", seconds: float) -> bool:
    if signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL or signal.getitimer(signal.ITIMER_REAL)[0]:
        return False
    try:
        signal.signal(signal.SIGALRM, ring)
    except ValueError:  # another thread, or a subinterpreter
        return False
    signal.setitimer(signal.ITIMER_REAL, seconds)
    return True


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
