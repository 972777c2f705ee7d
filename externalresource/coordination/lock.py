"""The lock of a coordination file: flock(2) on `FILE.lock`, which we never replace or remove, and on the file."""

import _thread
import fcntl
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator

from externalresource.coordination import ledger, safe_files
from externalresource.errors import CoordinationError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, TypeVar

    T = TypeVar("T")

    class Run(Protocol):
        """Runs a job and returns what it returns."""

        def __call__(self, job: Callable[[], T], /) -> T: ...


_NETWORK = {  # file systems that other machines may use, too; virtual machines with their host, for one
    *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
    *("ocfs2", "orangefs", "panfs", "smb2", "smb3", "smbfs", "virtiofs", "vboxsf", "vmhgfs", "wekafs"),
    *("fuse.ceph", "fuse.ceph-fuse", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mfs"),
    *("fuse.rclone", "fuse.s3fs", "fuse.smbnetfs", "fuse.sshfs", "fuse.vmhgfs-fuse"),
}
_PAUSE = 0.0005, 0.01  # seconds between two looks at the lock: the first, and the longest


#: Try to lock an open file without waiting; return whether that was possible.
Try = Callable[[int], bool]


def by_filelock(descriptor: int) -> bool:
    """Try the lock as the library does, whose import takes a third of the discovery script's time."""
    from filelock import lock_descriptor

    return lock_descriptor(descriptor, blocking=False)


def flock(descriptor: int) -> bool:
    """Try the lock by the system call that filelock makes on Unix, too: the two exclude each other."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def shielded(job: "Callable[[], T]") -> "T":
    """Run a job to its end, whatever interrupts this process; the interrupt is raised after it.

    It gets a thread of its own: Python runs signal handlers in the main thread only.
    """
    if _thread.get_ident() in _jobs or sys.is_finalizing():  # a thread that begins at the very end never runs
        return job()
    running = _Job(job)
    try:
        try:
            _thread.start_new_thread(running.run, ())
        except RuntimeError:  # no more threads, or the interpreter ends
            running.run()
        running.wait()
    except BaseException:
        running.end()
        raise
    if running.error is not None:
        raise running.error
    result: T = running.result
    return result


def unshielded(job: "Callable[[], T]") -> "T":
    """Run a job in a process that no interrupt outlives, or that holds back its signals."""
    return job()


_jobs: set[int] = set()  # their threads


class _Job:
    """Runs once: in its thread, or not at all."""

    def __init__(self, job: "Callable[[], Any]") -> None:
        self._job = job
        self._begun, self._done = _thread.allocate_lock(), _thread.allocate_lock()
        self._done.acquire()
        self._is_done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do the job, unless `end` was called before."""
        if not self._begun.acquire(blocking=False):
            return
        itself = _thread.get_ident()
        _jobs.add(itself)
        try:
            self.result = self._job()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that wants the result
            self.error = error
        finally:
            _jobs.discard(itself)
            self._is_done = True
            self._done.release()

    def wait(self) -> None:
        """Return when the job is done. It can be called again: an interrupt may come when it has just been done."""
        if not self._is_done:
            self._done.acquire()

    def end(self) -> None:
        """Return when the job is done, or never will be begun; an interrupt does not shorten that."""
        if self._begun.acquire(blocking=False):
            return
        try:
            self.wait()
        except BaseException:
            self.end()
            raise


class Lock:
    """The lock of a coordination file: of its lock file, and of the ledger itself.

    A cleaner may remove the lock file alone. Whoever makes it anew is kept out by the ledger then, if one of those who
    had locked the file that is gone is still inside.
    """

    def __init__(self, coordination_file: str, lock: Try = by_filelock, run: "Run" = shielded) -> None:
        self._file = coordination_file
        self._path = ledger.lock_file(coordination_file)
        self._try = lock
        self._run = run

    def during(self, section: "Callable[[Locked], T]", deadline: float, *, tries_again: bool = False) -> "T":
        """Return what a section returns that runs while the lock is held.

        LockedError if it is not free by `deadline` (time.monotonic). It says who holds the lock, which takes long to
        find, unless the caller `tries_again`.
        """
        pause, longest = _PAUSE
        while True:
            locked = Locked(self._file, self._path, self._try)
            try:
                return self._run(functools.partial(locked.during, section))
            except _BusyError as busy:
                if time.monotonic() >= deadline:
                    raise _refusal(busy.path, tries_again=tries_again) from None
            time.sleep(pause)
            pause = min(pause * 2, longest)

    def identity(self, deadline: float) -> tuple[int, int]:
        """Return device and inode of the lock file, which is made if it is missing: the ledger's change."""
        if not os.path.lexists(self._path):
            self.during(lambda _locked: None, deadline)
        try:
            status = os.lstat(self._path)
        except OSError as error:
            raise safe_files.refusal("lock", self._path, error) from None
        return status.st_dev, status.st_ino


class LockedError(CoordinationError):
    """Somebody else holds the lock for too long."""


def _refusal(path: str, *, tries_again: bool) -> LockedError:
    if tries_again:
        return LockedError(f"the lock {path} is not free")
    who = " and ".join(_holders(path)) or "a process that this user may not look at"
    return LockedError(f"timed out waiting for the lock {path}, which is held by {who}; nothing was changed")


class _BusyError(Exception):
    def __init__(self, path: str) -> None:
        self.path = path


class Locked:
    """Both files, opened anew for each try: if another file was put at the path, that one is the lock."""

    def __init__(self, coordination_file: str, lock_file: str, lock: Try) -> None:
        self._file, self._path, self._try = coordination_file, lock_file, lock
        self._descriptors = safe_files.Descriptors()

    def during(self, section: "Callable[[Locked], T]") -> "T":
        """Return what the section returns; _BusyError if somebody else holds one of the two."""
        try:
            self._take_lock_file()
            self._took(self._file)  # if it is missing, whoever reads it says whether it is lost
            return section(self)
        finally:
            self._leave()

    def _take_lock_file(self) -> None:
        if not self._took(self._path):
            self._make_lock_file()
            if not self._took(self._path):
                raise _BusyError(self._path)
        try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
            os.utime(self._descriptors.open[-1])  # cleaners of temporary files go by age
        except OSError:  # another user's
            pass

    def _make_lock_file(self) -> None:
        """Make it whole or not at all, under the lock of the ledger, which is made first."""
        try:
            _check_local(os.path.dirname(self._path) or ".")
        except OSError as error:
            raise safe_files.refusal("lock", self._path, error) from None
        safe_files.create(self._file)
        safe_files.check_replaceable(self._file)  # who may not use the ledger makes nothing beside it
        if self._took(self._file) and not os.path.lexists(self._path):
            safe_files.replace(self._path, ledger.LOCK_TEXT, like=self._file)
        self._leave()

    def _took(self, path: str) -> bool:
        """Lock a file; False if there is none, _BusyError if somebody else has locked it."""
        try:
            # An existing one is opened without O_CREAT, which fs.protected_regular refuses for another user's file.
            descriptor = self._descriptors.take(lambda: safe_files.open_plain(path, os.O_RDONLY))
            if not (self._try(descriptor) and _is_at(path, descriptor)):
                raise _BusyError(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise safe_files.refusal("lock", path, error) from None
        return True

    def take_next(self, opened: Callable[[], int]) -> int:
        """Lock the file that is to be the ledger, before it is at the path."""
        descriptor = self._descriptors.take(opened)
        self._try(descriptor)
        return descriptor

    def _leave(self) -> None:
        for descriptor in self._descriptors.open:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child of this moment, not yet another program, has it, too
        self._descriptors.close()


def network_file_system(mountinfo: str, mount: str) -> str | None:
    """Return the type of the mount of that id if other machines may use it, too, else None.

    `mountinfo` is the text of /proc/self/mountinfo; what a container's has not is taken for local.
    """
    for line in mountinfo.split("\n"):
        before, _, after = line.partition(" - ")
        if before.split(" ", 1)[0] == mount and (kind := after.split(" ", 1)[0]) in _NETWORK:
            return kind
    return None


def _check_local(folder: str) -> None:
    """Raise CoordinationError if other machines may use the folder. Asked once, when the lock file is made."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = network_file_system(_proc("mountinfo"), _mount(_proc(f"fdinfo/{descriptor}")))
    finally:
        os.close(descriptor)
    if kind is not None:
        raise CoordinationError(
            f"cannot keep claims in {folder}: it is on {kind}, which other machines may use, too, and nothing is known "
            "here of their locks and processes; choose a file on a local file system"
        )


def _mount(fdinfo: str) -> str:
    """Return the id of an open file's mount: unlike its path, that is never another one mounted over it."""
    return next((line.split()[1] for line in fdinfo.splitlines() if line.startswith("mnt_id:")), "")


def _proc(name: str) -> str:
    try:
        with open(f"/proc/self/{name}", encoding="utf-8", errors="replace", newline="\n") as file:
            return file.read()
    except OSError:  # no /proc: nobody can be identified as an owner, and who asks for that says so
        return ""


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holders(path: str) -> Iterator[str]:
    """Yield who has the file locked, as /proc/PID/fdinfo tells; /proc/locks has been seen to name the dead."""
    try:
        status = os.stat(path)
    except OSError:
        return
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} ".encode()
    for pid in _pids():
        folder = f"/proc/{pid}/fdinfo"
        try:
            if any(_locks(f"{folder}/{number}", place) for number in os.listdir(folder)):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    yield printable(f"pid {pid} ({file.read().strip()})")
        except OSError:
            continue


def _pids() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def _locks(fdinfo: str, place: bytes) -> bool:
    with open(fdinfo, "rb") as file:
        return any(line.startswith(b"lock:") and b" FLOCK " in line and place in line for line in file)
