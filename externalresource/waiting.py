"""Who waits for devices, first come first served: a file beside the coordination file, used under its lock.

One line per waiting process in the order in which they came, `WITNESS AMOUNT DEVICE...`. A place is kept by a lock that
its process holds, so that it vanishes with the process, whatever ends that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from externalresource import ledger, witness
from externalresource.errors import CoordinationError
from externalresource.matching import Claimable, D


@dataclass(frozen=True, slots=True)
class Place:
    """One process in the queue."""

    #: The lock that it holds while it waits.
    witness: str
    amount: int
    #: The devices that would do: their UUIDs, or tokens where there is none.
    devices: frozenset[str]


def place(name: str, amount: int, devices: Iterable[Claimable]) -> Place:
    """Return a place for whoever holds the lock of that name."""
    return Place(name, amount, frozenset(map(_identity, devices)))


def read(coordination_file: str) -> list[Place]:
    """Return the places of those that still wait, the longest first. CoordinationError if they cannot be read."""
    path = _path(coordination_file)
    places = [_parse(line, path) for line in ledger.read_text(path).splitlines()]
    return [place for place in places if witness.stands(coordination_file, place.witness, missing=False)]


def write(coordination_file: str, places: Sequence[Place]) -> None:
    """Replace the queue by these places; nobody waiting leaves no file."""
    if not places:
        ledger.remove(_path(coordination_file))
        return
    lines = [" ".join([place.witness, str(place.amount), *map(_quoted, sorted(place.devices))]) for place in places]
    ledger.write_text(_path(coordination_file), "".join(f"{line}\n" for line in lines))


def unreserved(free: Sequence[D], before: Iterable[Place]) -> list[D]:
    """Return those of the free devices that are not kept for the processes at these places, in their order."""
    left = list(free)
    for earlier in before:
        kept = [device for device in left if _identity(device) in earlier.devices][: earlier.amount]
        left = [device for device in left if device not in kept]
    return left


def _parse(line: str, path: str) -> Place:
    name, *rest = line.split(" ")
    if not rest or not rest[0].isdecimal():
        raise CoordinationError(f"cannot read {line[:80]!r} in {path}: remove that file while nobody waits")
    return Place(name, int(rest[0]), frozenset(map(unquote, rest[1:])))


def _identity(device: Claimable) -> str:
    return device.uuid or device.token


def _quoted(word: str) -> str:
    return quote(word, safe="")


def _path(coordination_file: str) -> str:
    return f"{coordination_file}.queue"
