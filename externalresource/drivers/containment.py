"""What a plugin does beyond its part while it is imported or asked: it hangs, or it prints."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Late(BaseException):
    """The block was still running at its deadline. No Exception: a plugin's import may catch those."""


@contextmanager
def bounded(seconds: float, what: str) -> Iterator[None]:
    """Raise Late in the block, which is `what`, if it takes longer.

    A module may need the main thread for its import, so it is not moved to another one: the alarm signal comes to it.
    Another thread, and a program that uses that signal itself, get a warning in the log instead; a hang in C that takes
    no signal has no bound at all.
    """

    def ring(_signal: int, _frame: object) -> None:
        raise Late

    if not _set(ring, seconds):
        with _watched(seconds, what):
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


@contextmanager
def _watched(seconds: float, what: str) -> Iterator[None]:
    watch = threading.Timer(seconds, _warn, [f"{what} takes longer than {seconds:g} s, and nothing here can end it"])
    watch.daemon = True
    with suppress(RuntimeError):  # a subinterpreter may have no such threads
        watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _warn(message: str) -> None:
    import logging

    logging.getLogger("externalresource").warning(message)


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
