"""The lock of a coordination file: flock(2) on `FILE.lock`, which is never replaced or removed by us."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator

from externalresource.coordination import ledger, safe_files
from externalresource.errors import CoordinationError

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


class Lock:
    """The lock of a coordination file, held for a block.

    CoordinationError, which says who holds it, if it is not free by `deadline` (time.monotonic).
    """

    def __init__(self, coordination_file: str, deadline: float, lock: Try = by_filelock) -> None:
        self._file = coordination_file
        self._path = ledger.lock_file(coordination_file)
        self._deadline = deadline
        self._try = lock

    def __enter__(self) -> None:
        """Take the lock of the file that is at the path."""
        pause, longest = _PAUSE
        descriptor = self._open()
        while not self._holds(descriptor):
            if time.monotonic() >= self._deadline:
                who = " and ".join(_holders(descriptor)) or "a process that this user may not look at"
                os.close(descriptor)
                raise CoordinationError(
                    f"{self._path} was not free in time, so nothing is granted: it is locked by {who}"
                )
            os.close(descriptor)  # opened again each time: if another file was put at the path, that one is the lock
            time.sleep(pause)
            pause = min(pause * 2, longest)
            descriptor = self._open()
        self._descriptor = descriptor

    def __exit__(self, *_error: object) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a fork of this moment has the descriptor, too
        os.close(self._descriptor)

    def _open(self) -> int:
        try:
            try:
                # An existing one is opened without O_CREAT, which fs.protected_regular refuses for another user's file.
                return safe_files.open_plain(self._path, os.O_RDONLY)
            except FileNotFoundError:
                _check_local(os.path.dirname(self._path) or ".")
                ledger.create_with_lock(self._file)
                return safe_files.open_plain(self._path, os.O_RDONLY)
        except OSError as error:
            raise safe_files.refusal("lock", self._path, error) from None

    def _holds(self, descriptor: int) -> bool:
        """Try to lock the file; False if somebody else holds it, or if it is no longer the one at the path."""
        try:
            return self._try(descriptor) and _is_at(self._path, descriptor)
        except OSError as error:
            os.close(descriptor)
            raise safe_files.refusal("lock", self._path, error) from None


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


def _holders(descriptor: int) -> Iterator[str]:
    """Yield who has the file locked, as /proc/PID/fdinfo tells; /proc/locks has been seen to name the dead."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} ".encode()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        folder = f"/proc/{pid}/fdinfo"
        try:
            if any(_locks(f"{folder}/{number}", place) for number in os.listdir(folder)):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    yield f"pid {pid} ({file.read().strip()})"
        except OSError:
            continue


def _locks(fdinfo: str, place: bytes) -> bool:
    with open(fdinfo, "rb") as file:
        return any(line.startswith(b"lock:") and b" FLOCK " in line and place in line for line in file)
