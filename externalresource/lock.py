"""The lock of a coordination file: flock(2) on `FILE.lock`, which is never replaced or removed by us."""

import contextlib
import os
import time
from collections.abc import Iterator

from filelock import lock_descriptor, unlock_descriptor

from externalresource import ledger
from externalresource.errors import CoordinationError

_PAUSE = 0.0005, 0.01  # seconds between two looks at the lock: the first, and the longest


@contextlib.contextmanager
def locked(coordination_file: str, deadline: float) -> Iterator[None]:
    """Hold the lock. CoordinationError, which says who holds it, if it is not free by `deadline` (time.monotonic)."""
    descriptor = _lock(f"{coordination_file}.lock", deadline)
    try:
        yield
    finally:
        unlock_descriptor(descriptor)  # closing is not enough: a fork of this moment has the descriptor, too
        os.close(descriptor)


def _lock(path: str, deadline: float) -> int:
    """Return a descriptor that holds the lock of the file that is at the path."""
    pause, longest = _PAUSE
    descriptor = _open(path)
    while not _holds(path, descriptor):
        if time.monotonic() >= deadline:
            who = " and ".join(_holders(descriptor)) or "a process that this user may not look at"
            os.close(descriptor)
            raise CoordinationError(f"{path} was not free in time, so nothing is granted: it is locked by {who}")
        os.close(descriptor)  # opened again each time: if another file was put at the path, that one is the lock
        time.sleep(pause)
        pause = min(pause * 2, longest)
        descriptor = _open(path)
    return descriptor


def _open(path: str) -> int:
    try:
        try:
            # An existing one is opened without O_CREAT, which fs.protected_regular refuses for another user's file.
            return ledger.open_plain(path, os.O_RDONLY)
        except FileNotFoundError:
            descriptor = ledger.open_plain(path, os.O_RDONLY | os.O_CREAT)
    except OSError as error:
        raise ledger.refusal("lock", path, error) from None
    with contextlib.suppress(PermissionError):  # of another user who created it just now
        os.fchmod(descriptor, 0o644)  # whatever the umask: those who cannot open it cannot ever share devices with us
    return descriptor


def _holds(path: str, descriptor: int) -> bool:
    """Try to lock the file; False if somebody else holds it, or if it is no longer the one at the path."""
    try:
        return lock_descriptor(descriptor, blocking=False) and _is_at(path, descriptor)
    except OSError as error:
        os.close(descriptor)
        raise ledger.refusal("lock", path, error) from None


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holders(descriptor: int) -> Iterator[str]:
    """Yield who has the file locked, as /proc/PID/fdinfo tells; /proc/locks has been seen to name the dead."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} ".encode()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            folder = f"/proc/{pid}/fdinfo"
            if any(_locks(f"{folder}/{number}", place) for number in os.listdir(folder)):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    yield f"pid {pid} ({file.read().strip()})"


def _locks(fdinfo: str, place: bytes) -> bool:
    with open(fdinfo, "rb") as file:
        return any(line.startswith(b"lock:") and b" FLOCK " in line and place in line for line in file)
