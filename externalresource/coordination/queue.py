"""Who waits for devices, first come first served: a file beside the coordination file, changed under its lock.

One line per waiting process in the order in which they came, `LOCK AMOUNT DEVICE...`; a part stands as `DEVICE@WHOLE`,
once for each device of which it is a part; no device stands where none would do at the moment; `of=GRANT,...` stands
before them where shares of that grant are waited for. A place is kept by a lock that its process holds, so it vanishes
with the process, whatever ends that.

A thousand may wait. To ask each lock takes longer than all the rest, so only those are asked that matter now.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from externalresource.coordination import life_lock, safe_files
from externalresource.coordination.ledger import quoted, unquoted
from externalresource.coordination.matching import Claimable, Wholes
from externalresource.errors import CoordinationError
from externalresource.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.coordination.matching import D

# The name of a lock is part of a path: no other character may stand in it.
_NAME = re.compile(r"[0-9a-f]+")
_LINE = re.compile(rf"({_NAME.pattern}) ([1-9][0-9]{{0,8}})((?: [!-~]+)*)")
_OF = "of="  # no device begins so: it is quoted
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~")
_ASKED = 16  # places at the front whose locks each look asks, and as many anywhere: the dead never become most of all
_NEAR = 16, 64  # rivals: who has fewer before it, or fewer than there are devices, looks itself each time; not beyond
_PAUSE = 0.05, 0.5, 1.0  # seconds between two looks: the first, the longest of those near the front, and far back
_ANYWAY = 2.0, 1 / 20  # seconds after which who is far back looks closer: at least, and for each rival before it


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
    """Return the places, the longest first, and strike out those of the dead, of many only some.

    To be called under the lock. CoordinationError if they cannot be read.
    """
    path = _path(coordination_file)
    places = _parse_all(_text(path), path)
    dead = {place.life_lock for place in _some(places) if not waits(coordination_file, place)}
    if not dead:
        return places
    left = [place for place in places if place.life_lock not in dead]
    write(coordination_file, left)
    for name in dead:
        life_lock.remove(coordination_file, name)
    return left


def before(coordination_file: str, name: str) -> tuple[list[Place], Place | None]:
    """Return the places before the one with that lock, the dead among them, and itself: None if there is none.

    Needs no lock: the file is only ever replaced whole.
    """
    path = _path(coordination_file)
    content = b"\n" + safe_files.read(path)
    at = content.find(f"\n{name} ".encode())
    if at < 0:
        return [], None
    own = content[at + 1 :].partition(b"\n")[0]
    return _parse_all(_decoded(content[:at], path), path), _parse(_decoded(own, path), path)


def names(coordination_file: str) -> list[str]:
    """Return the names of the locks of all places."""
    return [line.partition(" ")[0] for line in _text(_path(coordination_file)).split("\n") if line]


def waits(coordination_file: str, place: Place) -> bool:
    """Return False only if the process at a place provably waits no more."""
    return life_lock.stands(coordination_file, place.life_lock, missing=False)


def write(coordination_file: str, places: Sequence[Place]) -> None:
    """Replace the queue by these places; nobody waiting leaves no file."""
    if not places:
        safe_files.remove(_path(coordination_file))
        return
    rendered: dict[object, str] = {}  # many want the same
    lines = []
    for place in places:
        wish = place.amount, place.line, place.devices
        if wish not in rendered:
            rendered[wish] = _render(place)
        lines.append(f"{place.life_lock} {rendered[wish]}\n")
    safe_files.replace(_path(coordination_file), "".join(lines).encode(), like=coordination_file)


def change(coordination_file: str, places: Sequence[Place], after: Sequence[Place]) -> None:
    """Replace the queue, which consists of these places, if that makes a difference."""
    if list(places) != list(after):
        write(coordination_file, after)


def around(queue: Sequence[Place], name: str | None) -> tuple[list[Place], list[Place]]:
    """Return the places before and behind the one with that lock; all are before who has none yet."""
    names = [place.life_lock for place in queue]
    at = names.index(name) if name in names else len(queue)
    return [*queue[:at]], [*queue[at + 1 :]]


def unreserved(
    free: "Sequence[D]",
    before: Iterable[Place],
    wholes: Wholes | None = None,
    waits: Callable[[Place], bool] = lambda _place: True,
) -> "list[D]":
    """Return those of the free devices that are not kept for the processes at these places, in their order.

    `waits` tells of a place for which some would be kept whether its process still waits.
    """
    left, wholes = list(free), wholes or Wholes(free)
    for earlier in before:
        if not left:
            break
        kept = set(map(id, _kept(left, earlier, wholes)))
        if kept and waits(earlier):
            left = [device for device in left if id(device) not in kept]
    return left


def wants(place: Place, devices: Sequence[Claimable], wholes: Wholes | None = None) -> bool:
    """Return whether any of the devices may be kept for the process at this place."""
    return bool(_kept(devices, place, wholes or Wholes(devices)))


def rivals(
    places: Iterable[Place], devices: Sequence[Claimable], line: str, wholes: Wholes | None = None
) -> list[Place]:
    """Return those of the places that stand in the way of one who wants these devices."""
    wanted: dict[object, bool] = {}  # many want the same
    found = []
    for place in places:
        if place.line == line:
            if place.devices not in wanted:
                wanted[place.devices] = wants(place, devices, wholes)
            if wanted[place.devices]:
                found.append(place)
    return found


class View:
    """What a waiting process sees of the queue without the lock; the further back it is, the less often it looks.

    Who is far back watches the place half the way to the front: while that is kept, little has changed. If its process
    has died, so may others have, and all before are asked.
    """

    def __init__(self, coordination_file: str, name: str) -> None:
        self._file, self._name = coordination_file, name
        self._watched: Place | None = None
        self._until = 0.0
        #: Whether it has a place, as far as it knows.
        self.placed = False
        #: Seconds until the next look.
        self.pause = _PAUSE[0]

    def is_outdated(self) -> bool:
        """Return whether it is time to look at the queue and the claims, and not only at the watched place."""
        return self._watched is None or time.monotonic() >= self._until or not waits(self._file, self._watched)

    def look(
        self, devices: Sequence[Claimable], line: str, wholes: Wholes | None = None
    ) -> tuple[list[Place], Place | None]:
        """Return the rivals before this process, which may be dead, and its own place: None if that is not there."""
        ahead, own = before(self._file, self._name)
        self.placed = own is not None
        found = rivals(ahead, devices, line, wholes)
        self._watched = None
        least, most = _NEAR
        while self._watched is None and len(found) >= max(least, min(len(devices), most)):
            middle = found[len(found) // 2]
            if waits(self._file, middle):
                self._watched = middle
            else:
                found = [place for place in found if waits(self._file, place)]
        at_least, each = _ANYWAY
        self._until = time.monotonic() + max(at_least, each * len(found))
        return found, own

    def rest(self, *, changed: bool) -> None:
        """Set the pause after a look, by whether something had changed."""
        first, near, far = _PAUSE
        self.pause = far if self._watched else first if changed else min(near, self.pause * 2)


def _some(places: Sequence[Place]) -> Collection[Place]:
    if len(places) <= 2 * _ASKED:
        return places
    start = int.from_bytes(os.urandom(4), "big") % len(places)
    return [*places[:_ASKED], *places[start : start + _ASKED]]


def _kept(devices: "Sequence[D]", place: Place, wholes: Wholes) -> "list[D]":
    wanted = {name for name, _ in place.devices}
    sliced = {parent for _, parent in place.devices if parent}
    kept = [device for device in devices if _identity(device) in wanted][: place.amount]
    return kept + [device for device in devices if _identity(device) in sliced or wanted & {*_wholes(device, wholes)}]


def _text(path: str) -> str:
    return _decoded(safe_files.read(path), path)


def _decoded(content: bytes, path: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _unreadable("bytes that are not UTF-8", path) from None


def _unreadable(what: str, path: str) -> CoordinationError:
    return CoordinationError(
        f"cannot read {what} in {path}, so nothing is granted: remove that file while nobody waits"
    )


def _parse_all(text: str, path: str) -> list[Place]:
    like: dict[str, Place] = {}  # many want the same
    places = []
    for line in text.split("\n"):
        if line:
            name, _, wish = line.partition(" ")
            known = like.get(wish)
            if known is None or not _NAME.fullmatch(name):
                known = like[wish] = _parse(line, path)
            places.append(Place(name, known.amount, known.devices, known.line))
    return places


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
    return " ".join([str(place.amount), *line, *devices])


def _identity(device: Claimable) -> str:
    return device.uuid or device.token


def _wholes(device: Claimable, wholes: Wholes) -> list[str]:
    return [uuid or token or "" for uuid, token in wholes.of(device)]


def _quoted(word: str) -> str:
    return quoted(word, _PLAIN)


def _path(coordination_file: str) -> str:
    return f"{coordination_file}.queue"
