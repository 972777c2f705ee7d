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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from externalresource.coordination import safe_files
from externalresource.coordination.holders import Claim, Holder
from externalresource.coordination.process import Process
from externalresource.errors import CoordinationError
from externalresource.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A byte order mark, or another character that nobody sees, would make a device's line one of another device.
_LINE = re.compile(r"([!-~]+) ([1-9][0-9]{0,8})(?: (\{.*\}))?")
_DEVICE = {"uuid": str, "parent_uuid": str, "parent_token": str, "class": str}
_PROCESS = {
    "start_time": int, "boot_id": str, "pid_namespace": int, "time_namespace": int, "uid": int, "program": str,
    "pidfd_inode": int,
}  # fmt: skip
_HOLDER = {
    "witness": str, "until_children_exit": bool, "since": str, "grant": str, "share": dict, "left_by": dict,
}  # fmt: skip
_LEFT_BY = {"pid": int, "start_time": int, "pid_namespace": int, "time_namespace": int, "program": str}
_LISTS = {"needs": list, "ancestors": list}
_TYPES = {**_DEVICE, **_PROCESS, **_HOLDER, **_LISTS}  # of the fields that decide who holds what, where they stand
_LARGEST_PID = 999_999_999
#: What the lock file says, which is made after the ledger.
LOCK_TEXT = b"The lock of a coordination file. If that is missing beside this, its claims have been lost.\n"
_PLAIN = frozenset(range(0x21, 0x7F)) - {ord("%")}  # all that is printable but blanks and %
_QUOTED = re.compile(rb"%([0-9A-Fa-f]{2})")


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


def write(path: str, claims: Iterable[Claim], take: "Callable[[Callable[[], int]], int] | None" = None) -> str:
    """Replace the whole file by these claims and return its text, or leave it as it was and raise CoordinationError.

    `take` opens the new file as for `safe_files.replace`.
    """
    text = "".join([f"{claim.line or _render(claim)}\n" for claim in claims])
    safe_files.replace(path, text.encode(), take)
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
        result.append(_recordable(replace(claim, token=token)))
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
    if safe_files.read(lock_file(path)) == LOCK_TEXT and not os.path.lexists(path):
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
    shares = details.pop("shares", [])
    if not (_typed(details) and all(isinstance(word, str) for word in details.get("needs", ()))):
        raise ValueError(line)
    uuid, parent_uuid, parent_token, device_class = [details.pop(name, None) for name in _DEVICE]
    needs, ancestors = [tuple(details.pop(name, ())) for name in _LISTS]
    first, others = _holder(int(pid), details, root=True)
    claim = Claim(
        unquoted(token), (first,), uuid, parent_uuid, parent_token, device_class, needs, others, line, text is None
    )
    named = tuple([tuple(name) for name in ancestors if _is_name(name)])
    if not claim.understood:  # what it says of further holders, and of some of its ancestors, may look in any way
        return replace(claim, ancestors=named)
    if len(named) < len(ancestors):
        raise ValueError(line)
    return replace(claim, holders=(first, *_sharers(shares)), ancestors=named)


def _is_name(found: "Any") -> bool:
    """Return whether it is a UUID and a token, of which one may be null."""
    texts = [word is None or isinstance(word, str) for word in found] if isinstance(found, list) else []
    return texts == [True, True] and any(found)


def _holder(pid: int, fields: "Mapping[str, Any]", *, root: bool) -> "tuple[Holder, Mapping[str, Any]]":
    """Return the holder that these fields describe, and the others of them."""
    process = Process(pid, *[fields.get(name) for name in _PROCESS])
    if fields.get("until_children_exit") and not (fields.get("grant") and fields.get("witness")):
        raise ValueError(fields)  # by which else those would be known that count, too?
    holder = Holder(
        process,
        fields.get("grant"),
        fields.get("since"),
        fields.get("witness"),
        fields.get("until_children_exit", False),  # whoever inherits the mark, that is
        root,
        fields.get("share"),
        fields.get("left_by"),
    )
    return holder, {name: value for name, value in fields.items() if name not in _PROCESS and name not in _HOLDER}


def _sharers(shares: "Any") -> "Iterator[Holder]":
    if not isinstance(shares, list):
        raise ValueError(shares)  # noqa: TRY004 - as for all that cannot be read
    for share in shares:
        if not (isinstance(share, dict) and type(share.get("pid")) is int and 0 < share["pid"] <= _LARGEST_PID):
            raise ValueError(share)
        if not (_typed(share) and type(share.get("root", False)) is bool):
            raise ValueError(share)
        fields = dict(share)
        holder, others = _holder(fields.pop("pid"), fields, root=fields.pop("root", False))
        yield replace(holder, others=others)


def _typed(fields: "Mapping[str, Any]") -> bool:
    known = all(type(fields[key]) is kind for key, kind in _TYPES.items() if key in fields)
    return known and all(
        type(value) is _LEFT_BY.get(key, type(value)) for key, value in fields.get("left_by", {}).items()
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
    first, *others = claim.holders
    device = claim.uuid, claim.parent_uuid, claim.parent_token, claim.device_class
    fields = {
        **_known([*_DEVICE, *_LISTS], [*device, [*claim.needs] or None, [*claim.ancestors] or None]),
        **claim.others,
        **_fields(first),
        **({"shares": [_share(holder) for holder in others]} if others else {}),
    }
    line = f"{quoted(claim.token)} {first.process.pid}"
    return f"{line} {json.dumps(fields, separators=(',', ':'))}" if fields else line


def _share(holder: Holder) -> "Mapping[str, Any]":
    return {"pid": holder.process.pid, **({"root": True} if holder.root else {}), **_fields(holder)}


def _fields(holder: Holder) -> "Mapping[str, Any]":
    values = [getattr(holder.process, name) for name in _PROCESS]
    values += [holder.life_lock, holder.marked or None, holder.since, holder.grant, holder.share, holder.left_by]
    return {**_known([*_PROCESS, *_HOLDER], values), **holder.others}


def _known(names: Iterable[str], values: "Iterable[Any]") -> "dict[str, Any]":
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}
