"""Open, make and replace files in a folder that others may write: what they put there does no harm."""

import _thread
import errno
import functools
import os
import stat

from externalresource.errors import CoordinationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MODE = 0o644  # of a new one: readable for all, whatever the umask, as there are no secrets in it
_LARGEST = 16 << 20  # bytes; 1,024 devices take 0.3 MB
_SHARING = (  # once none are held: the claims in one file do not count in another
    "to share devices between users, once none are held, let all use one file in a new folder that they may write and "
    "that is not sticky (install -d -g GROUP -m 2770 FOLDER)"
)
_ADVICE = {
    errno.ENOENT: "create its folder, or choose another file",
    errno.EACCES: _SHARING,
    errno.ENOLCK: "choose a file on a local file system",
    errno.ENOSYS: "choose a file on a local file system",
    errno.EBUSY: "a single file is mounted there: mount its folder instead",
    errno.ENOSPC: "make room on its file system",
    errno.EDQUOT: "make room in the quota of its file system",
    errno.EROFS: "mount its file system writable: another file would not know who holds devices by this one",
}
_BESIDE = ".lock", ".queue", ".new"  # at the end of the names of what is ours beside a ledger
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
            except (OSError, IndexError):  # closed by one who becomes a daemon and closes all, or by another thread
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

    `take` opens the new file by what it is given, returns its descriptor, and closes it later. It has the mode of the
    one before, and the group and, of root's, the owner of the file `like`, by default the one before, too.
    """
    check_replaceable(path)
    new = f"{path}.new"
    try:
        _unlink(new)  # left by a process that was killed here; the name is fixed, so that they do not pile up
        try:
            descriptor = take(lambda: _new(new)) if take else _new(new)
            with open(descriptor, "wb", closefd=take is None) as file:
                _keep(descriptor, path, like or path)
                file.write(content)
            os.replace(new, path)
        except BaseException:
            _unlink(new)
            raise
    except OSError as error:
        raise refusal("write", new if error.errno in {errno.EPERM, errno.EISDIR} else path, error) from None


def _new(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)


def _keep(descriptor: int, path: str, like: str) -> None:
    """Give a new file what that at `path` has, and `like`. CoordinationError if it would lock somebody out."""
    before = _status(path)
    os.fchmod(descriptor, _MODE if before is None else stat.S_IMODE(before.st_mode) & 0o777)
    owned = before if like == path else _status(like)
    if owned is not None:
        _give(descriptor, owned)
        _check_kept(path, owned, os.fstat(descriptor))


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def give(descriptor: int, like: str) -> None:
    """Give a new file of root's to whoever owns the file `like`, if there is one."""
    owned = _status(like)
    if owned is not None and os.geteuid() == 0:
        _give(descriptor, owned)


def _give(descriptor: int, owned: os.stat_result) -> None:
    """Give it the group, and if this process is root the owner, where they differ and the system lets it do so."""
    status = os.fstat(descriptor)
    if owned.st_gid != status.st_gid:
        _chown(descriptor, -1, owned.st_gid)
    if owned.st_uid != status.st_uid and os.geteuid() == 0:
        _chown(descriptor, owned.st_uid, -1)


def _chown(descriptor: int, owner: int, group: int) -> None:
    try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
        os.fchown(descriptor, owner, group)
    except OSError:  # no member of the group, no CAP_CHOWN, nobody in this user namespace
        pass


def _check_kept(path: str, before: os.stat_result, after: os.stat_result) -> None:
    """Raise CoordinationError if the group or the owner that a file had could not go on with what is to replace it."""
    of_group, of_others = after.st_mode >> 3 & 0o7, after.st_mode & 0o7
    if before.st_gid != after.st_gid and of_group != of_others:
        raise CoordinationError(
            f"cannot write {path}: its group {before.st_gid} has other rights than all others, and this process cannot "
            f"keep it; nothing was written; put its user into the group (usermod -aG {before.st_gid} USER), or let all "
            f"read the file (chmod 644 {path})"
        )
    if before.st_uid in (0, after.st_uid):
        return
    folder = os.stat(os.path.dirname(path) or ".")
    if folder.st_mode & stat.S_ISVTX and folder.st_uid != before.st_uid:
        what, remedy = "could not replace it, as its folder is sticky", _SHARING
    elif not (of_group | of_others) & 0o4:
        what, remedy = "could not read it", f"let all read the file (chmod 644 {path})"
    else:
        return
    if after.st_uid == 0:
        remedy = (
            f"give this process CAP_CHOWN, or run it as that user (setpriv --reuid {before.st_uid} --clear-groups ...)"
        )
    raise CoordinationError(
        f"cannot write {path}: its owner, uid {before.st_uid}, {what}; nothing was written; {remedy}"
    )


def refusal(verb: str, path: str, error: OSError) -> CoordinationError:
    """Return the error for a file that the system does not let us read, write or lock."""
    if error.errno == errno.ELOOP:
        otherwise = "name the file that it leads to, if devices are held by that, else another one"
        what = f"it is a symbolic link, which is never followed; {_remedy(path, otherwise)}"
    elif error.errno == errno.EISDIR:
        what = _folder(path)
    else:
        advice = _of_another(path) if error.errno == errno.EPERM else _ADVICE.get(error.errno or 0)
        what = f"{error.strerror}; {advice}" if advice else f"{error.strerror}"
    return CoordinationError(f"cannot {verb} {path}: {what}")


def _of_another(path: str) -> str:
    """Return what helps who may not replace a file in a sticky folder, as /var/tmp is one."""
    status = _status(path)
    if status is None:
        return _SHARING
    if status.st_uid != 0:
        return f"it belongs to uid {status.st_uid}, and its folder is sticky; {_SHARING}"
    hand_over = f"root lets this user have it, and uses it all the same, by: chown {os.geteuid()} {path}"
    return f"it belongs to root, and its folder is sticky; {hand_over}; {_SHARING}"


def open_plain(path: str, flags: int) -> int:
    """Return a descriptor of a regular file with one name; CoordinationError for anything else that was planted there.

    Raises OSError if the system does not let us open it.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _MODE)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    raise CoordinationError(f"cannot use {path}: {_fault(path, status)}")


def _fault(path: str, status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return _folder(path)
    if not stat.S_ISREG(status.st_mode):
        return f"it is not a regular file; {_remedy(path, 'name another one')}"
    own = f"make it a file of its own: cp -p {path} {path}.own && mv {path}.own {path}"
    return f"it has {status.st_nlink} names (hard links); {_remedy(path, own)}"


def _folder(path: str) -> str:
    inside = os.path.join(path, "coordination")
    return f"it is a folder; {_remedy(path, f'name a file in it, as {inside}')}"


def _remedy(path: str, otherwise: str) -> str:
    """Return what helps where something was planted; `otherwise` for a ledger, which may be where its user meant it."""
    return "move it to another place" if path.endswith(_BESIDE) else otherwise


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
