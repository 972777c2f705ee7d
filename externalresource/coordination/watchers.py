"""Two small processes beside an owner that hold its life lock until it, and what uses its devices after it, has ended.

They stand in the owner's own pid namespace and share one open file description: killing one of them frees nothing.
A script that starts them ends. An owner that has them for itself lets a fork start them, which ends: they are not its
children, for which it might wait.
"""

import math
import os
import select
import signal
import time

from externalresource.coordination import life_lock, process as processes, safe_files
from externalresource.coordination.inside import WATCHER
from externalresource.coordination.process import Process
from externalresource.errors import CoordinationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    #: Returns who uses the devices once the owner has ended; None if nobody does.
    Heir = Callable[[], Process | None]

_LOOK = 1.0  # seconds between two looks of a watcher
_LONGEST = 15.0  # seconds between two looks at one that uses what another has left
_BOTH = 2
_SET_CHILD_SUBREAPER = 36  # of prctl(2)


def start(owner: Process, lock: int, path: str, started: list[int], heir: "Heir | None" = None) -> None:
    """Start both; `lock` is a descriptor that holds the life lock at `path`. Their pids are added to `started`.

    They have left what they inherit, other locks of this process included, when this returns. CoordinationError if
    they cannot be started.
    """
    ready, report = os.pipe()
    with open(ready, "rb") as reports:
        try:
            for _ in range(_BOTH):
                pid = os.fork()
                if pid == 0:
                    _stand(owner, lock, path, report, heir)
                started.append(pid)
        except OSError as error:
            raise CoordinationError(f"no watcher can be started beside pid {owner.pid}: {error.strerror}") from None
        finally:
            os.close(report)
        if len(reports.read(_BOTH)) < _BOTH:
            raise CoordinationError(f"no watcher can be started beside pid {owner.pid}: they ended at once")


def start_apart(owner: Process, lock: int, path: str, heir: "Heir | None" = None) -> list[int]:
    """Start both as nobody's children that this process, or what it becomes, could wait for; return their pids.

    A process that adopts what its descendants leave would have them back: it does not do so meanwhile.
    """
    pids = _start_by_a_fork(owner, lock, path, heir)
    if not _take_end(pids[0], os.WNOHANG):
        return pids
    for pid in pids:
        end(pid)
    _adopt_orphans(on=False)
    try:
        return _start_by_a_fork(owner, lock, path, heir)
    finally:
        _adopt_orphans(on=True)


def end(pid: int) -> None:
    """Kill a child and take its end: an owner that is pid 1 of its container may be one that takes nobody's."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def _start_by_a_fork(owner: Process, lock: int, path: str, heir: "Heir | None") -> list[int]:
    """Let a fork start both and end; return their pids."""
    try:
        told, tell = os.pipe()
        fork = os.fork()
    except OSError as error:
        raise CoordinationError(f"no watcher can be started beside pid {owner.pid}: {error.strerror}") from None
    if fork == 0:
        _start_and_end(owner, lock, path, tell, heir)
    os.close(tell)
    with open(told, "rb") as answer:
        kind, _, text = answer.read().decode().partition(" ")
    _take_end(fork)  # and what it leaves has been adopted
    if kind != "started":
        raise CoordinationError(
            text or f"no watcher can be started beside pid {owner.pid}: the fork that starts it ended"
        )
    return [int(pid) for pid in text.split()]


def _start_and_end(owner: Process, lock: int, path: str, tell: int, heir: "Heir | None") -> "NoReturn":
    started: list[int] = []
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        start(owner, lock, path, started, heir)
        os.write(tell, " ".join(["started", *map(str, started)]).encode())
    except CoordinationError as error:
        for pid in started:
            end(pid)
        os.write(tell, f"failed {error}".encode())
    finally:
        os._exit(0)


def _take_end(pid: int, how: int = 0) -> bool:
    """Take the end of a child as waitpid(2) does; False if it is no child of this process."""
    try:
        os.waitpid(pid, how)
    except ChildProcessError:
        return False
    return True


def _adopt_orphans(*, on: bool) -> None:
    """Say whether this process adopts what its descendants leave. CoordinationError if this Python cannot."""
    try:
        import ctypes  # which takes 6 ms
    except ImportError as error:
        raise CoordinationError(f"no watcher can be started: this process adopts orphans, and {error}") from None
    if ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, ctypes.c_ulong(on), 0, 0, 0) != 0:
        raise CoordinationError("no watcher can be started: this process adopts orphans, and prctl(2) is refused")


def _stand(owner: Process, lock: int, path: str, report: int, heir: "Heir | None") -> "NoReturn":
    """Be a watcher: leave all that was the caller's but the lock, report, and wait for the owner's end."""
    try:
        os.setsid()  # neither a terminal nor whoever kills the script's group reaches it
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # an owner asked to end still uses its devices
        os.chdir("/")
        _leave_descriptors(lock, report)
        _take_name()
        os.write(report, b"!")
        os.close(report)
        _wait(owner, lock, path)
        if heir is not None:
            _wait_for_heirs(heir, lock, path)
            _say_nobody_is_left(lock, path)
    finally:
        os._exit(0)


def _say_nobody_is_left(lock: int, path: str) -> None:
    while not safe_files.removed(lock, path):
        try:
            life_lock.say_nobody_is_left(lock)
        except OSError:  # a full disk
            time.sleep(_LOOK)
        else:
            return


def _take_name() -> None:
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(WATCHER)
    except OSError:  # then it has that of the program which it was
        pass


def _leave_descriptors(*kept: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in {0, 1, 2}.difference(kept):
        os.dup2(null, descriptor)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in kept:  # noqa: PLR2004 - the standard streams
            try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
                os.close(descriptor)
            except OSError:  # the one that listed them
                pass


def _wait_for_heirs(heir: "Heir", lock: int, path: str) -> None:
    """Return when nobody uses the devices any more, or the claim has ended."""
    pause, before = _LOOK, None
    while not safe_files.removed(lock, path):
        try:
            now = heir()
        except Exception:  # noqa: BLE001 - as below
            time.sleep(_LOOK)
            continue
        if now is None:
            return
        pause = min(2 * pause, _LONGEST) if now == before else _LOOK
        before = now
        _wait(now, lock, path, pause)


def _wait(owner: Process, lock: int, path: str, at_most: float = math.inf) -> None:
    """Return when the owner has ended, or the claim: whatever else goes wrong here must not look like that."""
    end = time.monotonic() + at_most
    while not safe_files.removed(lock, path) and time.monotonic() < end:
        try:
            if _ends_before(owner, lock, path, end):
                return
        except Exception:  # noqa: BLE001 - no memory, no descriptors, no pidfd in this kernel
            time.sleep(_LOOK)


def _ends_before(owner: Process, lock: int, path: str, end: float) -> bool:
    if processes.gone(owner, processes.observer()):
        return True
    descriptor = os.pidfd_open(owner.pid)
    try:
        if processes.gone(owner, processes.observer()):  # so it would not be the owner's, but of one after it
            return True
        while time.monotonic() < end and not safe_files.removed(lock, path):
            if select.select([descriptor], [], [], _LOOK)[0]:
                return True
        return False
    finally:
        os.close(descriptor)
