"""Who waits for devices, first come first served: a file beside the coordination file, used under its lock.

One line per waiting process in the order in which they came, `LOCK AMOUNT DEVICE...`, a part as `DEVICE@WHOLE`, once
for each device of which it is a part;
no device where none would do at the moment; `of=GRANT,...` before them where shares of that are waited for. A place is
kept by a lock that its process holds, so that it vanishes with the process, whatever ends that.
"""

import re
from collections.abc import Iterable, Sequence

from externalresource.coordination import life_lock, safe_files
from externalresource.coordination.ledger import quoted, unquoted
from externalresource.coordination.matching import Claimable, Wholes
from externalresource.errors import CoordinationError
from externalresource.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.coordination.matching import D

# The name of a lock is part of a path: no other character may stand in it.
_LINE = re.compile(r"([0-9a-f]+) ([1-9][0-9]{0,8})((?: [!-~]+)*)")
_OF = "of="  # no device begins so: it is quoted
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~")


@record
class Place:
    """One process in the queue."""

    #: The lock that it holds while it waits.
    life_lock: str
    amount: int
    #: The devices that would do, each with each of which it is a part, or "": UUIDs, or tokens where there is none.
    devices: frozenset[tuple[str, str]]
    #: The grants of which it wants shares, or "": those who want other ones do not stand in its way.
    line: str = ""


def place(name: str, amount: int, devices: Sequence[Claimable], line: str = "", wholes: Wholes | None = None) -> Place:
    """Return a place for whoever holds the lock of that name."""
    wholes = wholes or Wholes(devices)
    pairs = [(_identity(device), whole) for device in devices for whole in _wholes(device, wholes) or [""]]
    return Place(name, amount, frozenset(pairs), line)


def read(coordination_file: str) -> list[Place]:
    """Return the places of those that still wait, the longest first, and strike out those of the dead.

    CoordinationError if they cannot be read.
    """
    path = _path(coordination_file)
    places = [_parse(line, path) for line in _text(path).split("\n") if line]
    dead = [place for place in places if not life_lock.stands(coordination_file, place.life_lock, missing=False)]
    if not dead:
        return places
    living = [place for place in places if place not in dead]
    write(coordination_file, living)
    for place in dead:
        life_lock.remove(coordination_file, place.life_lock)
    return living


def write(coordination_file: str, places: Sequence[Place]) -> None:
    """Replace the queue by these places; nobody waiting leaves no file."""
    if not places:
        safe_files.remove(_path(coordination_file))
        return
    safe_files.replace(_path(coordination_file), "".join(f"{_render(place)}\n" for place in places).encode())


def around(queue: Sequence[Place], name: str | None) -> tuple[list[Place], list[Place]]:
    """Return the places before and behind the one with that lock; all are before who has none yet."""
    names = [place.life_lock for place in queue]
    at = names.index(name) if name in names else len(queue)
    return [*queue[:at]], [*queue[at + 1 :]]


def unreserved(free: "Sequence[D]", before: Iterable[Place], wholes: Wholes | None = None) -> "list[D]":
    """Return those of the free devices that are not kept for the processes at these places, in their order."""
    left, wholes = list(free), wholes or Wholes(free)
    for earlier in before:
        wanted = {name for name, _ in earlier.devices}
        sliced = {parent for _, parent in earlier.devices if parent}
        kept = [device for device in left if _identity(device) in wanted][: earlier.amount]
        kept += [device for device in left if _identity(device) in sliced or wanted & {*_wholes(device, wholes)}]
        numbers = set(map(id, kept))
        left = [device for device in left if id(device) not in numbers]
    return left


def wants(place: Place, devices: Sequence[Claimable], wholes: Wholes | None = None) -> bool:
    """Return whether any of the devices may be kept for the process at this place."""
    return len(unreserved(devices, [place], wholes)) < len(devices)


def _text(path: str) -> str:
    try:
        return safe_files.read(path).decode()
    except UnicodeDecodeError:
        raise _unreadable("bytes that are not UTF-8", path) from None


def _unreadable(what: str, path: str) -> CoordinationError:
    return CoordinationError(
        f"cannot read {what} in {path}, so nothing is granted: remove that file while nobody waits"
    )


def _parse(line: str, path: str) -> Place:
    match = _LINE.fullmatch(line)
    if match is None:
        raise _unreadable(repr(line[:80]), path)
    name, amount, devices = match.groups()
    words = devices.split()
    line = unquoted(words.pop(0).removeprefix(_OF)) if words and words[0].startswith(_OF) else ""
    pairs = [word.partition("@") for word in words]
    return Place(
        name, int(amount), frozenset((unquoted(device), unquoted(parent)) for device, _, parent in pairs), line
    )


def _render(place: Place) -> str:
    devices = [f"{_quoted(name)}@{_quoted(parent)}".removesuffix("@") for name, parent in sorted(place.devices)]
    line = [f"{_OF}{_quoted(place.line)}"] if place.line else []
    return " ".join([place.life_lock, str(place.amount), *line, *devices])


def _identity(device: Claimable) -> str:
    return device.uuid or device.token


def _wholes(device: Claimable, wholes: Wholes) -> list[str]:
    return [uuid or token or "" for uuid, token in wholes.of(device)]


def _quoted(word: str) -> str:
    return quoted(word, _PLAIN)


def _path(coordination_file: str) -> str:
    return f"{coordination_file}.queue"
