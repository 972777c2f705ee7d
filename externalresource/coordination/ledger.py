"""Who holds which device: the coordination file, and nothing of processes.

One line per device, `TOKEN PID JSON`. The first two columns are those of Flink's own discovery script, whose two-column
lines are read as they are; a TOKEN never stands in two lines, which that script cannot digest. The caller locks.

A ledger that a cleaner of temporary files has removed must not mean that nothing is claimed. So whoever makes the lock
file makes an empty ledger first, and the lock file says so: it tells a ledger that is lost from one that never was.
"""

import functools
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from externalresource.coordination import safe_files
from externalresource.errors import CoordinationError
from externalresource.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A byte order mark, or another character that nobody sees, would make a device's line one of another device.
_LINE = re.compile(r"([!-~]+) ([1-9][0-9]{0,8})(?: (\{.*\}))?")
_TYPES = {  # of the fields that decide who holds what, where they stand
    **dict.fromkeys(("uuid", "parent_uuid", "parent_token", "class"), str),
    **dict.fromkeys(("boot_id", "since", "program", "witness", "grant"), str),
    **dict.fromkeys(("start_time", "pid_namespace", "time_namespace", "uid", "pidfd_inode"), int),
    "until_children_exit": bool,
}
_LARGEST_PID = 999_999_999
_LOCK_TEXT = b"The lock of a coordination file. If that is missing beside this, its claims have been lost.\n"
_PLAIN = frozenset(range(0x21, 0x7F)) - {ord("%")}  # all that is printable but blanks and %
_QUOTED = re.compile(rb"%([0-9A-Fa-f]{2})")


@record
class Claim:
    """One device in one owner's hands."""

    #: The device's name as CUDA_VISIBLE_DEVICES takes it, or any other blank-free word.
    token: str
    pid: int
    #: What the third column says; empty for a line of Flink's own script. Fields that we do not know are kept.
    details: "Mapping[str, Any]" = {}  # noqa: RUF012 - nobody changes it
    #: As it stands in the file, which is kept to the letter; empty if it does not stand there yet.
    line: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Claim) and (self.token, self.pid, self.details) == (
            other.token, other.pid, other.details
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash((self.token, self.pid))

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
    raw = safe_files.read(path)
    if not raw and not os.path.lexists(path):
        _check_never_was(path)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CoordinationError(_unreadable(path, line, "bytes that are not UTF-8")) from None


def create_with_lock(path: str) -> None:
    """Make the two files, with no claims, or leave them as they are. CoordinationError for anything else there."""
    safe_files.create(path, b"")
    safe_files.create(lock_file(path), _LOCK_TEXT)


def write(path: str, claims: Iterable[Claim]) -> str:
    """Replace the whole file by these claims and return its text, or leave it as it was and raise CoordinationError."""
    text = "".join([f"{claim.line or _render(claim)}\n" for claim in claims])
    safe_files.replace(path, text.encode())
    return text


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


def quoted(word: str, plain: Collection[int] = _PLAIN) -> str:
    """Return a word without blanks, as in a URL; `plain` are the characters that stay."""
    return "".join([chr(byte) if byte in plain else f"%{byte:02X}" for byte in word.encode()])


def unquoted(word: str) -> str:
    """Return what was quoted."""
    if "%" not in word:
        return word
    return _QUOTED.sub(lambda match: bytes.fromhex(match[1].decode()), word.encode()).decode(errors="replace")


def _check_never_was(path: str) -> None:
    """Raise CoordinationError if there was a file. The lock is looked at first: it was made after the ledger."""
    if safe_files.read(lock_file(path)) == _LOCK_TEXT and not os.path.lexists(path):
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
    return Claim(unquoted(token), int(pid), details, line)


def _typed(fields: "Mapping[str, Any]") -> bool:
    return all(type(fields[key]) is kind for key, kind in _TYPES.items() if key in fields)


def _are_shares(shares: "Any") -> bool:
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
    line = f"{quoted(claim.token)} {claim.pid}"
    return f"{line} {json.dumps(claim.details, separators=(',', ':'))}" if claim.details else line
