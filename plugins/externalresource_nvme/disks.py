"""The NVMe namespaces of this host as sysfs shows them: the kernel's Documentation/ABI, sysfs-nvme and sysfs-block.

`nvme0n1` is a disk of its controller, or with multipath of its subsystem, which may have several controllers; the first
number says nothing of which. `nvme0c1n1` is one path to `nvme0n1`: it has no file in /dev and is no disk of its own.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_DISK = re.compile(r"nvme[0-9]+n[0-9]+")
_CONTROLLER = re.compile(r"nvme[0-9]+")
_SECTOR = 512  # bytes: in sysfs, whatever the disk's own are
_LOCAL = ("pcie", "apple-nvme")  # transports to a disk in this very host
_NO_IDENTITY = re.compile(r"(?:(?:eui|uuid)\.)?[0 -]*")


@dataclass(frozen=True, slots=True)
class Part:
    """A disk, or one of its partitions, as the rest of the system knows it."""

    name: str
    #: `MAJOR:MINOR`
    number: str
    #: What stands upon it: `dm-0`, `md127`.
    holders: Sequence[str]
    #: It is a part of a bcache, which keeps no list of holders for all of its disks.
    cached: bool


@dataclass(frozen=True, slots=True)
class Controller:
    name: str
    state: str | None
    transport: str | None
    numa_node: str | None
    bus_id: str | None


@dataclass(frozen=True, slots=True)
class Disk:
    name: str
    #: As the kernel prefers: the namespace's UUID, NGUID or EUI-64, or vendor, serial, model and number in one.
    wwid: str | None
    size: int
    properties: Mapping[str, str]
    #: The disk itself, then its partitions.
    parts: Sequence[Part]
    controllers: Sequence[Controller]

    def faults(self, *, fabrics: bool) -> list[str]:
        """Return why it would not do for anybody, used or not."""
        found = [] if self.wwid else ["it has no identity (wwid)"]
        if self.size == 0:
            found.append("it has no size")
        if not any(controller.state == "live" for controller in self.controllers):
            states = ", ".join(f"{each.name} is {each.state or 'in no known state'}" for each in self.controllers)
            found.append(f"no controller of it is live ({states or 'it has none'})")
        far = sorted({controller.transport or "an unknown transport" for controller in self.controllers} - {*_LOCAL})
        if far and not fabrics:
            found.append(f"it is reached by {', '.join(far)}: other hosts may use it; see the option fabrics")
        return found


def names(sysfs: str) -> list[str]:
    """Return the disks' names in the order of their numbers. OSError if there is no sysfs."""
    found = [name for name in os.listdir(os.path.join(sysfs, "block")) if _DISK.fullmatch(name)]
    return sorted(found, key=lambda name: [int(number) for number in re.findall("[0-9]+", name)])


def read(sysfs: str, name: str) -> Disk:
    """Return a disk. OSError if what decides on it cannot be read, ValueError if it is not as documented."""
    folder = os.path.join(sysfs, "block", name)
    parent = os.path.realpath(os.path.join(folder, "device"))
    owner = os.path.basename(parent)
    owners = [owner] if _CONTROLLER.fullmatch(owner) else filter(_CONTROLLER.fullmatch, sorted(os.listdir(parent)))
    controllers = [_controller(sysfs, controller) for controller in owners]
    size = int(_text(folder, "size")) * _SECTOR
    return Disk(name, _wwid(folder), size, _properties(folder, parent, controllers, size), _parts(folder), controllers)


def _controller(sysfs: str, name: str) -> Controller:
    folder = os.path.join(sysfs, "class", "nvme", name)
    transport, node = _known(folder, "transport"), _known(folder, "numa_node")
    bus_id = os.path.basename(os.path.realpath(os.path.join(folder, "device"))) if transport == "pcie" else None
    return Controller(name, _known(folder, "state"), transport, None if node == "-1" else node, bus_id)


def _properties(folder: str, parent: str, controllers: Sequence[Controller], size: int) -> dict[str, str]:
    known = {
        "model": _known(parent, "model"),
        "serial": _known(parent, "serial"),
        "size": str(size),
        "nsid": _known(folder, "nsid"),
        "numa_node": _same([controller.numa_node for controller in controllers]),
        "pci.bus_id": _same([controller.bus_id for controller in controllers]),
        "transport": _same([controller.transport for controller in controllers]),
        "controllers": ",".join(controller.name for controller in controllers),
        "read_only": "true" if _known(folder, "ro") == "1" else None,
    }
    return {key: value for key, value in known.items() if value}


def _same(values: Sequence[str | None]) -> str | None:
    """Return what all of them are: nothing, if they differ."""
    return values[0] if len({*values}) == 1 else None


def _wwid(folder: str) -> str | None:
    for attribute, prefix in (("wwid", ""), ("nguid", "nguid."), ("eui", "eui.")):
        text = _known(folder, attribute)
        if text and not _NO_IDENTITY.fullmatch(text):
            return prefix + re.sub(r"\s+", "_" if attribute == "wwid" else "", text)
    return None


def _parts(folder: str) -> list[Part]:
    partitions = sorted(name for name in os.listdir(folder) if os.path.exists(os.path.join(folder, name, "partition")))
    return [_part(folder), *(_part(os.path.join(folder, name)) for name in partitions)]


def _part(folder: str) -> Part:
    number = _text(folder, "dev")
    if not re.fullmatch("[0-9]+:[0-9]+", number):
        raise ValueError(f"{folder}/dev says {number[:40]!r}, which is no MAJOR:MINOR")
    holders = sorted(os.listdir(os.path.join(folder, "holders")))
    return Part(os.path.basename(folder), number, holders, cached=os.path.exists(os.path.join(folder, "bcache")))


def _text(folder: str, attribute: str) -> str:
    with open(os.path.join(folder, attribute), encoding="utf-8", errors="replace") as file:
        return file.read().strip().strip("\0")


def _known(folder: str, attribute: str) -> str | None:
    """Return what decides on nothing, or on nothing good: None if it cannot be read."""
    try:
        return _text(folder, attribute) or None
    except OSError:
        return None
