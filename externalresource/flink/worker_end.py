"""A worker ends with its TaskManager, whose devices are the next one's then.

When a TaskManager is killed, about half of PyFlink's workers never end by themselves, and what they have put onto a GPU
stays there. A thread of the worker sees to it, or a process beside one that is about to become another program.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Sequence

_GRACE = 5.0  # seconds that a worker has to end by itself

#: The processes that have such a thread: this one, and those that it is a fork of.
_watched: set[int] = set()


def end_with(manager: int) -> None:
    """Let this process be killed when its TaskManager, of that pid, has ended and it lives on for some seconds."""
    itself = os.getpid()
    if itself in (manager, *_watched):  # in thread mode it is the TaskManager
        return
    _watched.add(itself)
    with contextlib.suppress(OSError):  # a kernel without pidfds
        threading.Thread(target=_end, args=(manager, os.pidfd_open(itself)), daemon=True).start()


def end_with_over_exec(manager: int) -> None:
    """Let this process be killed then also as another program, which no thread of it outlasts."""
    with contextlib.suppress(OSError):
        worker = os.pidfd_open(os.getpid())  # which the exec closes
        if first := os.fork():
            with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored nobody has to be waited for
                os.waitpid(first, 0)
            return
        try:
            os.setsid()
            os.chdir("/")
            if os.fork() == 0:  # whose child the worker never sees
                os.closerange(0, worker)
                os.closerange(worker + 1, os.sysconf("SC_OPEN_MAX"))
                _end(manager, worker)
        finally:
            os._exit(0)


def _end(manager: int, worker: int) -> None:
    """Wait for the end of either, and see to the other's: `worker` is a pidfd."""
    with contextlib.suppress(OSError):  # it has ended meanwhile
        with contextlib.suppress(ProcessLookupError):
            if worker in _ended([os.pidfd_open(manager), worker]):
                return
        if not _ended([worker], _GRACE):
            signal.pidfd_send_signal(worker, signal.SIGKILL)


def _ended(pidfds: Sequence[int], seconds: float | None = None) -> list[int]:
    """Wait until one of these processes ends, and return which did."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    return [pidfd for pidfd, _ in poll.poll(None if seconds is None else seconds * 1000)]
