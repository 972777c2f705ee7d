"""Who holds which device: the coordination file, and nothing of processes.

One line per device, `TOKEN PID JSON`. The first two columns are those of Flink's own discovery script, whose two-column
lines are read as they are; a TOKEN never stands in two lines, which that script cannot digest. The caller locks.

A ledger that a cleaner of temporary files has removed must not mean that nothing is claimed. So whoever makes the lock
file makes an empty ledger first, and the lock file says so: it tells a ledger that is lost from one that never was.
"""

import contextlib
import errno
import functools
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from externalresource.errors import CoordinationError

# A byte order mark, or another character that nobody sees, would make a device's line one of another device.
_LINE = re.compile(r"([!-~]+) ([1-9][0-9]{0,8})(?: (\{.*\}))?")
_TYPES = {  # of the fields that decide who holds what, where they stand
    **dict.fromkeys(("uuid", "parent_uuid", "parent_token", "class"), str),
    **dict.fromkeys(("boot_id", "since", "program", "witness", "grant"), str),
    **dict.fromkeys(("start_time", "pid_namespace", "time_namespace", "uid", "pidfd_inode"), int),
    "until_children_exit": bool,
}
_LARGEST_PID = 999_999_999
_MODE = 0o644  # readable for all, whatever the umask: there are no secrets in it
_LOCK_TEXT = "The lock of a coordination file. If that is missing beside this, its claims have been lost.\n"
_LARGEST = 16 << 20  # bytes; 1,024 devices take 0.3 MB
_PLAIN = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"  # all that is printable but blanks and %
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


@dataclass(frozen=True, slots=True)
class Claim:
    """One device in one owner's hands."""

    #: The device's name as CUDA_VISIBLE_DEVICES takes it, or any other blank-free word.
    token: str
    pid: int
    #: What the third column says; empty for a line of Flink's own script. Fields that we do not know are kept.
    details: Mapping[str, Any] = field(default_factory=dict)
    #: As it stands in the file, which is kept to the letter; empty if it does not stand there yet.
    line: str = field(default="", compare=False, repr=False)

    @property
    def uuid(self) -> str | None:
        return self.details.get("uuid")

    @property
    def parent_uuid(self) -> str | None:
        return self.details.get("parent_uuid")

    @property
    def parent_token(self) -> str | None:
        return self.details.get("parent_token")


def lock_file(path: str) -> str:
    """Return where the lock of a ledger is."""
    return f"{path}.lock"


def read(path: str) -> list[Claim]:
    """Return all claims; none if there never was a file. CoordinationError for anything that cannot be understood."""
    return parse(content(path), path)


def content(path: str) -> str:
    """Return the text of the file, to be parsed; empty if there never was one. CoordinationError if it is lost."""
    text = read_text(path)
    if not text and not os.path.lexists(path):
        _check_never_was(path)
    return text


def create_with_lock(path: str) -> None:
    """Make the two files, with no claims, or leave them as they are. CoordinationError for anything else there."""
    _create(path, "")
    _create(lock_file(path), _LOCK_TEXT)


def read_text(path: str) -> str:
    """Return the content of a file, empty if there is none. CoordinationError for anything that is no such file."""
    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise refusal("read", path, error) from None
    if len(content) > _LARGEST:
        raise CoordinationError(f"coordination file {path} is larger than 16 MiB, which no ledger is: look at it")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CoordinationError(_unreadable(path, line, "bytes that are not UTF-8")) from None


def write(path: str, claims: Iterable[Claim]) -> str:
    """Replace the whole file by these claims and return its text, or leave it as it was and raise CoordinationError."""
    text = "".join([f"{claim.line or _render(claim)}\n" for claim in claims])
    write_text(path, text)
    return text


def write_text(path: str, text: str) -> None:
    """Replace the whole file by this text, or leave it as it was and raise CoordinationError."""
    new = f"{path}.new"
    try:
        remove(new)  # left by a process that was killed here; the name is fixed, so that they do not pile up
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, _MODE)
                file.write(text.encode())
            os.replace(new, path)
        except BaseException:
            remove(new)
            raise
    except OSError as error:
        raise refusal("write", path, error) from None


def parse(text: str, path: str) -> list[Claim]:
    """Return the claims of a file's content; blank lines claim nothing. `path` is named in errors."""
    lines = text.split("\n")
    try:
        return [_claim(line) for line in lines if line and not line.isspace()]
    except ValueError:
        number = next(number for number, line in enumerate(lines) if line.strip() and not _readable(line))
        raise CoordinationError(_unreadable(path, number + 1, repr(lines[number][:80]))) from None


def append(claims: Sequence[Claim], new: Iterable[Claim]) -> list[Claim]:
    """Return both, a new one under its UUID if its token stands for another device (a container counts from 0)."""
    result = list(claims)
    taken = {claim.token for claim in claims}
    for claim in new:
        token = claim.uuid if claim.token in taken and claim.uuid else claim.token
        result.append(_recordable(Claim(token, claim.pid, claim.details)))
        taken.add(token)
    return result


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


def _create(path: str, text: str) -> None:
    try:
        descriptor = open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, _MODE)
            file.write(text.encode())
    except FileExistsError:
        read_text(path)
    except OSError as error:
        raise refusal("write", path, error) from None


def _check_never_was(path: str) -> None:
    """Raise CoordinationError if there was a file. The lock is looked at first: it was made after the ledger."""
    if read_text(lock_file(path)) == _LOCK_TEXT and not os.path.lexists(path):
        raise CoordinationError(
            f"coordination file {path} was removed while its lock file remained, so nothing is granted: its claims are "
            f"lost, but their owners may live; once none of them does, remove {lock_file(path)}, too"
        )


@functools.lru_cache(maxsize=8192)  # a line never changes; most have been seen by the claim before
def _claim(line: str) -> Claim:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(line)
    token, pid, text = match.groups()
    try:
        details = json.loads(text) if text else {}
    except RecursionError:
        raise ValueError(line) from None
    if not (_typed(details) and _are_shares(details.get("shares", []))):
        raise ValueError(line)
    return Claim(unquote(token), int(pid), details, line)


def _typed(fields: Mapping[str, Any]) -> bool:
    return all(type(fields[key]) is kind for key, kind in _TYPES.items() if key in fields)


def _are_shares(shares: Any) -> bool:
    return isinstance(shares, list) and all(
        isinstance(share, dict) and type(share.get("pid")) is int and 0 < share["pid"] <= _LARGEST_PID and _typed(share)
        for share in shares
    )


def _readable(line: str) -> bool:
    try:
        _claim(line)
    except ValueError:
        return False
    return True


def _recordable(claim: Claim) -> Claim:
    """Return it if it can be read again; otherwise nobody could ever claim anything with this file any more."""
    line = _render(claim)
    try:
        return _claim(line)
    except ValueError:
        raise CoordinationError(
            f"the driver's device cannot be recorded as {line!r}: its token must be a text that is not empty, and its "
            "uuid, parent_uuid and parent_token texts or None"
        ) from None


def _unreadable(path: str, number: int, what: str) -> str:
    return (
        f"{path}, line {number}: cannot read {what}, so nothing is granted; expected 'DEVICE PID' or "
        "'DEVICE PID {JSON}'; mend the line, or empty the file once no owner lives"
    )


def _render(claim: Claim) -> str:
    line = f"{quote(claim.token, safe=_PLAIN)} {claim.pid}"
    return f"{line} {json.dumps(claim.details, separators=(',', ':'))}" if claim.details else line


def remove(path: str) -> None:
    """Remove a file that may be there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
