"""A lock that is free once an owner has ended, for those who cannot see its pid.

A pid means nothing in another container. A lock does: flock(2) reaches across pid namespaces and is freed with its last
holder, so a container that is killed frees its own, with no daemon and nobody helping. Its file is made for one claim,
under a name that is never used again; what cannot be determined counts as held.

An owner that claims for itself holds the lock. For one that had a script claim, which ends, watchers hold it, and for
the command of `run`, which may close what it inherits, and leave others that use its devices after it.
"""

import fcntl
import os
import re
from collections.abc import Callable, Collection

from externalresource.coordination import safe_files
from externalresource.coordination.process import Process
from externalresource.errors import CoordinationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.coordination.watchers import Heir

_NAME = re.compile(r"[0-9A-Za-z]{1,64}")

_NOBODY = b"Nobody uses the devices any more.\n"
_TRIES = 20  # files that somebody else locks at once, one after the other


class LifeLock:
    """A lock held by this process until `close` or its end."""

    def __init__(self, coordination_file: str) -> None:
        self._file = os.path.abspath(coordination_file)
        safe_files.check_replaceable(self._file)  # who may not use the ledger makes nothing beside it
        self._watchers: list[int] = []
        self._descriptors = safe_files.Descriptors()
        for _ in range(_TRIES):
            self.name = os.urandom(8).hex()
            self._path = _path(self._file, self.name)
            if self._lock():
                return
        raise CoordinationError(f"cannot keep {self._path} locked: somebody locks each file that is made there")

    @property
    def descriptor(self) -> int | None:
        """Return what holds the lock; None if it was passed on or closed, or in a fork that has left it."""
        return self._descriptors.open[0] if self._descriptors.open else None

    def post(self, owner: Process) -> None:
        """Pass the lock on to watchers beside the owner, which hold it until that has ended.

        To be called while this process has one thread. CoordinationError if they cannot be started.
        """
        from externalresource.coordination import watchers  # the few that need it

        self._pass_on(lambda lock: watchers.start(owner, lock, self._path, self._watchers))
        self._descriptors.close()

    def keep_over_exec(self) -> None:
        """Let this process hold the lock also as another program; its children inherit it then, too."""
        if self.descriptor is not None:
            os.set_inheritable(self.descriptor, True)

    def post_apart(self, owner: Process, heir: "Heir | None" = None) -> None:
        """Have watchers hold the lock for this process, whatever program it becomes, and for its heirs."""
        from externalresource.coordination import watchers

        self._pass_on(lambda lock: self._watchers.extend(watchers.start_apart(owner, lock, self._path, heir)))
        if self.descriptor is not None:
            os.set_inheritable(self.descriptor, False)

    def _pass_on(self, post: Callable[[int], object]) -> None:
        if self.descriptor is None:
            return
        passed_on = os.dup(self.descriptor)  # which the forks that become watchers do not leave
        try:
            post(passed_on)
        finally:
            os.close(passed_on)

    def close(self) -> None:
        """Free the lock and remove its file. In a fork that has left it nothing happens."""
        if self.descriptor is None and not self._watchers:
            return
        while self._watchers:
            from externalresource.coordination import watchers

            watchers.end(self._watchers.pop())
        remove(self._file, self.name)
        self._descriptors.close()

    def _lock(self) -> bool:
        """Make the file and lock it; False, and without it, if it was taken for one that the dead left."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = self._descriptors.take(lambda: os.open(self._path, flags, 0o644))
            os.fchmod(descriptor, 0o644)  # whatever the umask: others must be able to try the lock
            safe_files.give(descriptor, self._file)  # who may replace the ledger can remove it when it is free
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not safe_files.removed(descriptor, self._path):
                return True
        except BlockingIOError:
            remove(self._file, self.name)
        except OSError as error:
            self._descriptors.close()
            raise safe_files.refusal("write", self._path, error) from None
        self._descriptors.close()
        return False


def beside(coordination_file: str, owner: Process) -> LifeLock:
    """Return a lock by which other containers, where the owner's pid means nothing, see that it lives.

    This process holds it if it is the owner, else watchers do. CoordinationError if they cannot be started.
    """
    lock = LifeLock(coordination_file)
    try:
        if owner.pid != os.getpid():
            lock.post(owner)
    except CoordinationError:
        lock.close()
        raise
    return lock


def say_nobody_is_left(descriptor: int) -> None:
    """Say in the file of a lock that nobody uses the devices any more: that it is free alone does not say so."""
    os.pwrite(descriptor, _NOBODY, 0)  # both watchers do


def nobody_is_left(coordination_file: str, name: str) -> bool:
    """Return whether the file says so."""
    try:
        return safe_files.read(_path(coordination_file, name)) == _NOBODY
    except CoordinationError:
        return False


def stands(coordination_file: str, name: str, *, missing: bool = True) -> bool:
    """Return False only if nobody holds the lock, provably; `missing` if its file is not there."""
    try:
        with _Tried(_path(coordination_file, name)) as free:
            return not free
    except FileNotFoundError:
        return missing
    except (OSError, CoordinationError):
        return True


def remove(coordination_file: str, name: str) -> None:
    """Remove the file of a lock that nobody needs any more; its watchers end."""
    try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
        os.unlink(_path(coordination_file, name))
    except (OSError, CoordinationError):
        pass


def sweep(coordination_file: str, needed: Collection[str]) -> None:
    """Remove the files of locks that are not needed and that nobody holds: of those killed before they claimed.

    One that was made this moment, and is not locked yet, is made again by its maker.
    """
    folder, prefix = os.path.split(f"{coordination_file}.witness-")
    try:
        entries = os.listdir(folder or ".")
    except OSError:  # it need not be readable
        return
    for name in (entry.removeprefix(prefix) for entry in entries if entry.startswith(prefix)):
        if name not in needed:
            _remove_if_free(coordination_file, name)


def _remove_if_free(coordination_file: str, name: str) -> None:
    try:
        with _Tried(_path(coordination_file, name)) as free:
            if free:  # and nobody can lock it now
                remove(coordination_file, name)
    except (OSError, CoordinationError):
        pass


class _Tried:
    """Tells for a block whether nobody holds the lock, and keeps it from being taken meanwhile."""

    def __init__(self, path: str) -> None:
        self._descriptor = safe_files.open_plain(path, os.O_RDONLY)

    def __enter__(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
        except OSError:
            return False
        return True

    def __exit__(self, *_error: object) -> None:
        os.close(self._descriptor)


def _path(coordination_file: str, name: str) -> str:
    """Return where the lock of that name is; CoordinationError for what can be no name, but might lead elsewhere."""
    if not _NAME.fullmatch(name):
        raise CoordinationError(f"{name[:80]!r} is no name of a life lock")
    return f"{coordination_file}.witness-{name}"
