"""Files in a folder that others may write: opened, made and replaced so that what was planted there harms nobody."""

import _thread
import errno
import functools
import os
import stat

from externalresource.errors import CoordinationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MODE = 0o644  # readable for all, whatever the umask: there are no secrets in it
_LARGEST = 16 << 20  # bytes; 1,024 devices take 0.3 MB
_SHARING = "to share devices between users, give them a folder that they all may write and that is not sticky"
_ADVICE = {
    errno.ENOENT: "create its folder, or choose another file",
    errno.EACCES: _SHARING,
    errno.EPERM: _SHARING,
    errno.EISDIR: "remove the folder that is there with .new at the end of its name",
    errno.ENOLCK: "choose a file on a local file system",
    errno.ENOSYS: "choose a file on a local file system",
    errno.EBUSY: "a single file is mounted there: mount its folder instead",
    errno.ENOSPC: "make room on its file system",
    errno.EDQUOT: "make room in the quota of its file system",
    errno.EROFS: "choose a file on a writable file system",
}
#: Held while a descriptor is opened and noted, lest a fork of another thread have one that nobody there knows of.
_forking = _thread.RLock()
_all: "set[Descriptors]" = set()


class Descriptors:
    """Open descriptors of this process. Forks leave them at once: else locks outlive it in them."""

    def __init__(self) -> None:
        self.open: list[int] = []

    def take(self, opened: "Callable[[], int]") -> int:
        """Return what `opened` returns, a descriptor, which is one of these then."""
        _leave_in_forks()
        with _forking:
            _all.add(self)
            self.open.append(opened())
        return self.open[-1]

    def close(self) -> None:
        """Close them."""
        _all.discard(self)
        while self.open:
            try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
                os.close(self.open.pop())
            except OSError:  # somebody else closed it, as one who becomes a daemon closes all
                pass


@functools.cache  # once for this process and its forks, as it cannot be undone
def _leave_in_forks() -> None:
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_leave)


def _leave() -> None:
    try:
        while _all:
            _all.pop().close()
    finally:
        _forking.release()


def create(path: str) -> None:
    """Make an empty file, or leave it as it is. CoordinationError for anything else that is there."""
    try:
        descriptor = open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.fchmod(descriptor, _MODE)
        finally:
            os.close(descriptor)
    except FileExistsError:
        read(path)
    except OSError as error:
        raise refusal("write", path, error) from None


def read(path: str) -> bytes:
    """Return the content of a file, empty if there is none. CoordinationError for anything that is no such file."""
    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise refusal("read", path, error) from None
    if len(content) > _LARGEST:
        raise CoordinationError(f"coordination file {path} is larger than 16 MiB, which no ledger is: look at it")
    return content


def replace(
    path: str, content: bytes, take: "Callable[[Callable[[], int]], int] | None" = None, *, like: str | None = None
) -> None:
    """Replace the whole file by this content, or leave it as it was and raise CoordinationError.

    `take` opens the new file by what it is given, returns its descriptor, and closes it later. What root writes belongs
    to whoever owns the file `like`, by default the one before: in a sticky folder he could not replace root's.
    """
    check_replaceable(path)
    new = f"{path}.new"
    try:
        _unlink(new)  # left by a process that was killed here; the name is fixed, so that they do not pile up
        try:
            _write(new, content, take, like or path)
            os.replace(new, path)
        except BaseException:
            _unlink(new)
            raise
    except OSError as error:
        raise refusal("write", path, error) from None


def _write(path: str, content: bytes, take: "Callable[[Callable[[], int]], int] | None", like: str) -> None:
    def opened() -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)

    descriptor = take(opened) if take else opened()
    with open(descriptor, "wb", closefd=take is None) as file:
        os.fchmod(descriptor, _MODE)
        if os.geteuid() == 0:
            _give(descriptor, like)
        file.write(content)


def _give(descriptor: int, like: str) -> None:
    """Give a file of root's to whoever owns another one, if there is one, and he is known in this user namespace."""
    try:
        status = os.lstat(like)
        os.fchown(descriptor, status.st_uid, status.st_gid)
    except OSError:
        pass


def refusal(verb: str, path: str, error: OSError) -> CoordinationError:
    """Return the error for a file that the system does not let us read, write or lock."""
    if error.errno == errno.ELOOP:
        return CoordinationError(f"cannot {verb} {path}: it is a symbolic link, which is never followed; remove it")
    advice = _ADVICE.get(error.errno or 0)
    return CoordinationError(f"cannot {verb} {path}: {error.strerror}" + (f"; {advice}" if advice else ""))


def open_plain(path: str, flags: int) -> int:
    """Return a descriptor of a regular file with one name; CoordinationError for anything else that was planted there.

    Raises OSError if the system does not let us open it.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _MODE)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    what = f"has {status.st_nlink} names (hard links)" if stat.S_ISREG(status.st_mode) else "is not a regular file"
    raise CoordinationError(f"cannot use {path}: it {what}; remove it")


def check_replaceable(path: str) -> None:
    """Raise CoordinationError if there is a file that this user may not replace; nothing is changed by that."""
    try:
        if stat.S_ISREG(os.lstat(path).st_mode):
            os.rmdir(path)  # the system looks whether we may remove it before it sees that it is no folder
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise refusal("write", path, error) from None


def remove(path: str) -> None:
    """Remove a file that may be there, or raise CoordinationError."""
    try:
        _unlink(path)
    except OSError as error:
        raise refusal("remove", path, error) from None


def _unlink(path: str) -> None:
    try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
        os.unlink(path)
    except FileNotFoundError:
        pass


def removed(descriptor: int, path: str) -> bool:
    """Return whether an open file is no longer at its path, nor another one there."""
    return os.fstat(descriptor).st_nlink == 0 and not os.path.lexists(path)
