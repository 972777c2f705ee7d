"""What a plugin does beyond its part while it is imported or asked: it takes long, prints, fails or exits."""

import _thread
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from externalresource.errors import ExternalResourceError, PluginError, cause, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

_SHOWN = 80  # characters of what an error repeats
_GRACE = 0.1  # seconds that a thread has to be gone


def answered(
    ask: "Callable[[], T]",
    deadline: float,
    *,
    failed: str,
    late: str,
    advice: str = "",
    kind: type[ExternalResourceError] = PluginError,
) -> "T":
    """Return what code of a plugin answers before `deadline` (`time.monotonic`).

    It gets a thread of its own, which is left behind if it hangs. Errors of ours come through. All else that it raises,
    SystemExit too, is an error of `kind` in one line: `failed` and the cause; if it is late: `late` and the `advice`.
    """
    began, asked = time.monotonic(), _Asked(ask)
    if not asked.is_done(deadline):
        raise kind(f"{late} within {time.monotonic() - began:.1f} s{advice}")
    if asked.error is None:
        answer: T = asked.answer
        return answer
    if isinstance(asked.error, ExternalResourceError):
        raise asked.error
    raise kind(f"{failed}: {cause(asked.error)}") from asked.error


class _Asked:
    """A thread that asks, from the moment of construction."""

    def __init__(self, ask: "Callable[[], Any]") -> None:
        self._ask = ask
        self._thread = 0
        self._done = _thread.allocate_lock()  # what threading has of its own answers an interrupt with a RuntimeError
        self._done.acquire()
        self.answer: Any = None
        self.error: BaseException | None = None
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # no more threads: better without a deadline than not at all
            self._run()

    def _run(self) -> None:
        self._thread = _thread.get_native_id()
        try:
            self.answer = self._ask()
        except BaseException as error:  # noqa: BLE001 - sys.exit in a thread would end in silence
            self.error = error
        finally:
            self._done.release()

    def is_done(self, deadline: float) -> bool:
        """Wait until it has ended, at most until `deadline`. A fork would find a thread that only has done its part."""
        if not self._done.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        end = time.monotonic() + _GRACE
        while self._is_there() and time.monotonic() < end:
            time.sleep(0.0001)
        return True

    def _is_there(self) -> bool:
        return self._thread != _thread.get_native_id() and os.path.exists(f"/proc/self/task/{self._thread}")


def variables(found: object, whose: str) -> dict[str, str]:
    """Return what a driver answers as variables of a process; PluginError if it cannot be that."""
    if wrong := flaw(found):
        raise PluginError(f"{whose} must be texts by the name of a variable, not {wrong}")
    return dict(found)  # type: ignore[call-overload, no-any-return] # it is a mapping of texts


def flaw(found: object) -> str | None:
    """Return why this cannot be variables of a process: what it is or has instead of texts; None if it can."""
    if not isinstance(found, Mapping):
        return repr(found)[:_SHOWN]
    for name, value in found.items():
        if not (_is_text(name) and name and "=" not in name):
            return f"with the name {name!r}"[:_SHOWN]
        if not _is_text(value):
            return f"with {value!r}"[:_SHOWN] + f" for {name!r}"
    return None


def _is_text(found: object) -> bool:
    """Return whether the system takes it for a name or a value."""
    try:
        return isinstance(found, str) and b"\0" not in os.fsencode(found)
    except UnicodeEncodeError:
        return False


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
