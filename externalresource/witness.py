"""A lock that is free once an owner has ended, for those who cannot see its pid.

A pid means nothing in another container. A lock does: flock(2) reaches across pid namespaces and is freed with its last
holder, so a container that is killed frees its own, with no daemon and nobody helping. Its file is made for one claim,
under a name that is never used again; what cannot be determined counts as held.

An owner that claims for itself holds the lock. For one that had a script claim, which ends, two witnesses stay beside
it in its own namespace and share one open file description: killing one of them frees nothing.
"""

import contextlib
import fcntl
import os
import secrets
import select
import signal
import time
from typing import NoReturn

from externalresource import ledger
from externalresource import owner as processes
from externalresource.errors import CoordinationError
from externalresource.owner import Owner

_LOOK = 0.5  # seconds between two looks at an owner, where the kernel has no pidfd
_BOTH = 2


class Witness:
    """A lock held by this process, and by whoever it is passed on to, until `close` or the end of the last of them."""

    def __init__(self, coordination_file: str) -> None:
        self.name = secrets.token_hex(8)
        self._path = _path(coordination_file, self.name)
        self._posted: int | None = None
        flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.descriptor = os.open(self._path, flags, 0o644)
            os.fchmod(self.descriptor, 0o644)  # whatever the umask: others must be able to try the lock
        except OSError as error:
            raise ledger.refusal("write", self._path, error) from None
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def post(self, owner: Owner) -> None:
        """Leave two witnesses beside the owner, which hold the lock until it has ended.

        They have left what they inherit, other locks of this process included, when this returns. To be called while
        it has one thread. Raises CoordinationError if they cannot be started.
        """
        ready, report = os.pipe()
        try:
            self._posted = os.fork()
            if self._posted == 0:
                _stand(owner, self.descriptor, report)
            os.close(report)
            reports = os.read(ready, 1) + os.read(ready, 1)
        except OSError as error:
            raise CoordinationError(f"no witness can be started beside pid {owner.pid}: {error.strerror}") from None
        finally:
            os.close(ready)
        if len(reports) < _BOTH:
            raise CoordinationError(f"no witness can be started beside pid {owner.pid}: see its limit of processes")

    def close(self) -> None:
        """Free the lock and remove its file."""
        if self._posted is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._posted, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        os.close(self.descriptor)


def stands(coordination_file: str, name: str, *, missing: bool = True) -> bool:
    """Return False only if nobody holds the lock, provably; `missing` if its file is not there."""
    try:
        descriptor = ledger.open_plain(_path(coordination_file, name), os.O_RDONLY)
    except FileNotFoundError:
        return missing
    except (OSError, CoordinationError):
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def remove(coordination_file: str, name: str) -> None:
    """Remove the file of a lock that nobody needs any more."""
    with contextlib.suppress(OSError):
        os.unlink(_path(coordination_file, name))


def _path(coordination_file: str, name: str) -> str:
    return f"{coordination_file}.witness-{name}"


def _stand(owner: Owner, lock: int, report: int) -> NoReturn:
    """Be two witnesses: leave all that was the caller's but the lock, report, and wait for the owner's end."""
    try:
        os.setsid()  # neither a terminal nor whoever kills the script's group reaches them
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # an owner that is asked to end still uses its devices
        os.fork()
        os.chdir("/")
        _leave_descriptors(lock, report)
        os.write(report, b"!")
        os.close(report)
        _wait(owner)
    finally:
        os._exit(0)


def _leave_descriptors(*kept: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in kept:  # noqa: PLR2004 - the standard streams
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(descriptor)


def _wait(owner: Owner) -> None:
    """Return when the owner has ended; whatever goes wrong here must not look like its end."""
    while True:
        try:
            if processes.gone(owner, processes.observer()):
                return
            descriptor = os.pidfd_open(owner.pid)
            if not processes.gone(owner, processes.observer()):  # so it is the owner's, and nobody's after it
                select.select([descriptor], [], [])
        except Exception:  # noqa: BLE001 - no memory, no descriptors, no pidfd in this kernel
            time.sleep(_LOOK)
        else:
            return
