"""A lock that is free once an owner has ended, for those who cannot see its pid.

A pid means nothing in another container. A lock does: flock(2) reaches across pid namespaces and is freed with its last
holder, so a container that is killed frees its own, with no daemon and nobody helping. Its file is made for one claim,
under a name that is never used again; what cannot be determined counts as held.

An owner that claims for itself holds the lock. For one that had a script claim, which ends, two witnesses stay beside
it in its own namespace and share one open file description: killing one of them frees nothing.
"""

import contextlib
import fcntl
import functools
import os
import re
import secrets
import select
import signal
import time
from collections.abc import Collection, Iterator
from typing import NoReturn

from externalresource.coordination import ledger
from externalresource.coordination import process as processes
from externalresource.coordination.process import Owner
from externalresource.errors import CoordinationError

_LOOK = 1.0  # seconds between two looks of a witness
_BOTH = 2
_NAME = re.compile(r"[0-9A-Za-z]{1,64}")

#: What this process holds for itself alone. A fork must leave it at once, and knows of no object that would tell it.
_own: set["Witness"] = set()


class Witness:
    """A lock held by this process until `close` or its end; if `inherited`, until the end of its last fork."""

    def __init__(self, coordination_file: str, *, inherited: bool = False) -> None:
        self._file = os.path.abspath(coordination_file)
        self._posted: list[int] = []
        self.descriptor: int | None = None
        while self.descriptor is None:
            self.name = secrets.token_hex(8)
            self._path = _path(self._file, self.name)
            self.descriptor = self._lock()
        if not inherited:
            _leave_in_forks()
            _own.add(self)

    def post(self, owner: Owner) -> None:
        """Pass the lock on to two witnesses beside the owner, which hold it until that has ended.

        They have left what they inherit, other locks of this process included, when this returns. To be called while
        it has one thread. Raises CoordinationError if they cannot be started.
        """
        ready, report = os.pipe()
        with open(ready, "rb") as reports:
            try:
                for _ in range(_BOTH):
                    self._start(owner, report)
            except OSError as error:
                raise CoordinationError(f"no witness can be started beside pid {owner.pid}: {error.strerror}") from None
            finally:
                os.close(report)
            if len(reports.read(_BOTH)) < _BOTH:
                raise CoordinationError(f"no witness can be started beside pid {owner.pid}: they ended at once")
        self._leave()

    def keep_over_exec(self) -> None:
        """Let this process hold the lock also as another program; its children inherit it then, too."""
        if self.descriptor is not None:
            os.set_inheritable(self.descriptor, True)

    def close(self) -> None:
        """Free the lock and remove its file. In a fork that has left it nothing happens."""
        if self.descriptor is None and not self._posted:
            return
        for pid in self._posted:
            _end(pid)
        self._posted.clear()
        remove(self._file, self.name)
        self._leave()

    def _lock(self) -> int | None:
        """Return a descriptor that holds the lock; None if its file was taken for one that the dead left."""
        flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o644)
            os.fchmod(descriptor, 0o644)  # whatever the umask: others must be able to try the lock
        except OSError as error:
            raise ledger.refusal("write", self._path, error) from None
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _removed(descriptor, self._path):
            return descriptor
        os.close(descriptor)
        return None

    def _start(self, owner: Owner, report: int) -> None:
        pid = os.fork()
        if pid == 0:
            _stand(owner, self.descriptor, self._path, report)
        self._posted.append(pid)

    def _leave(self) -> None:
        _own.discard(self)
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def stands(coordination_file: str, name: str, *, missing: bool = True) -> bool:
    """Return False only if nobody holds the lock, provably; `missing` if its file is not there."""
    try:
        with _tried(_path(coordination_file, name)) as free:
            return not free
    except FileNotFoundError:
        return missing
    except (OSError, CoordinationError):
        return True


def remove(coordination_file: str, name: str) -> None:
    """Remove the file of a lock that nobody needs any more; its witnesses end."""
    with contextlib.suppress(OSError, CoordinationError):
        os.unlink(_path(coordination_file, name))


def sweep(coordination_file: str, needed: Collection[str]) -> None:
    """Remove the files of locks that are not needed and that nobody holds: of those killed before they claimed.

    One that was made this moment, and is not locked yet, is made again by its maker.
    """
    folder, prefix = os.path.split(f"{coordination_file}.witness-")
    entries: list[str] = []
    with contextlib.suppress(OSError):  # it need not be readable
        entries = os.listdir(folder or ".")
    for name in (entry.removeprefix(prefix) for entry in entries if entry.startswith(prefix)):
        if name not in needed:
            with contextlib.suppress(OSError, CoordinationError), _tried(_path(coordination_file, name)) as free:
                if free:  # and nobody can lock it now
                    remove(coordination_file, name)


@contextlib.contextmanager
def _tried(path: str) -> Iterator[bool]:
    """Tell whether nobody holds the lock, and keep it from being taken meanwhile."""
    descriptor = ledger.open_plain(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
    except OSError:
        free = False
    else:
        free = True
    try:
        yield free
    finally:
        os.close(descriptor)


def _path(coordination_file: str, name: str) -> str:
    """Return where the lock of that name is; CoordinationError for what can be no name, but might lead elsewhere."""
    if not _NAME.fullmatch(name):
        raise CoordinationError(f"{name[:80]!r} is no name of a witness")
    return f"{coordination_file}.witness-{name}"


def _removed(descriptor: int, path: str) -> bool:
    return os.fstat(descriptor).st_nlink == 0 and not os.path.lexists(path)


def _end(pid: int) -> None:
    """Kill a child and take its end: an owner that is pid 1 of its container may be one that takes nobody's."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@functools.cache  # once for this process and its forks, as it cannot be undone
def _leave_in_forks() -> None:
    os.register_at_fork(after_in_child=_leave_all)


def _leave_all() -> None:
    while _own:
        _own.pop()._leave()  # noqa: SLF001 - of this module


def _stand(owner: Owner, lock: int | None, path: str, report: int) -> NoReturn:
    """Be a witness: leave all that was the caller's but the lock, report, and wait for the owner's end."""
    if lock is None:  # there is nothing to hold
        os._exit(1)
    try:
        os.setsid()  # neither a terminal nor whoever kills the script's group reaches it
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # an owner asked to end still uses its devices
        os.chdir("/")
        _leave_descriptors(lock, report)
        os.write(report, b"!")
        os.close(report)
        _wait(owner, lock, path)
    finally:
        os._exit(0)


def _leave_descriptors(*kept: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in {0, 1, 2}.difference(kept):
        os.dup2(null, descriptor)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in kept:  # noqa: PLR2004 - the standard streams
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(descriptor)


def _wait(owner: Owner, lock: int, path: str) -> None:
    """Return when the owner has ended, or the claim: whatever else goes wrong here must not look like that."""
    while not _removed(lock, path):
        try:
            if _ends_within(owner, _LOOK):
                return
        except Exception:  # noqa: BLE001 - no memory, no descriptors, no pidfd in this kernel
            time.sleep(_LOOK)


def _ends_within(owner: Owner, seconds: float) -> bool:
    if processes.gone(owner, processes.observer()):
        return True
    descriptor = os.pidfd_open(owner.pid)
    try:
        if processes.gone(owner, processes.observer()):  # so it would not be the owner's, but of one after it
            return True
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
