"""What this host does with its disks, as far as the kernel tells: whatever it does not tell is a reason, too."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from externalresource_nvme.disks import Part

_NO_DISKS = ("bpf", "cgroup", "fuse", "pstore", "resctrl", "selinux", "smackfs")  # not all may be read by everybody
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    #: `MAJOR:MINOR` of the file system, which is not that of its disk for one with several: btrfs, for example.
    number: str
    #: The names of the devices that it was mounted from.
    sources: Sequence[str]
    point: str


@dataclass(frozen=True, slots=True)
class Uses:
    """All that is known at one moment."""

    mounts: Sequence[Mount]
    #: Of those that are swap.
    swaps: Sequence[str]
    #: The kernel's mounted file systems, of other containers as well, by the name of each device.
    file_systems: Mapping[str, str]
    #: Loop devices and the like, by the device behind them.
    behind: Mapping[str, str]

    def of(self, part: Part) -> list[str]:
        """Return by what a disk or a partition is used."""
        mounted = [mount.point for mount in self.mounts if part.number == mount.number or part.name in mount.sources]
        found = [f"{part.name} is mounted at {mounted[0]}"] if mounted else []
        if part.name in self.file_systems and not mounted:
            found.append(f"{part.name} is mounted elsewhere ({self.file_systems[part.name]})")
        if part.name in self.swaps:
            found.append(f"{part.name} is swap")
        if part.name in self.behind:
            found.append(f"{part.name} is behind {self.behind[part.name]}")
        if part.cached:
            found.append(f"{part.name} belongs to a bcache")
        return [*found, *(f"{part.name} is held by {holder}" for holder in part.holders)]


def read(sysfs: str, proc: str, dev: str) -> Uses:
    """Return what is used. OSError if it cannot be told, ValueError if it is not as the kernel documents it."""
    mounts = _mounts(os.path.join(proc, "self", "mountinfo"), dev)
    with suppress(OSError):  # init may have some that we have not, and whoever is not root sees only his own
        mounts += _mounts(os.path.join(proc, "1", "mountinfo"), dev)
    return Uses(mounts, _swaps(proc, dev), dict(_file_systems(sysfs)), dict(_behind(sysfs, dev)))


def _mounts(path: str, dev: str) -> list[Mount]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [_mount(line, path, dev) for line in file if line.strip()]


def _mount(line: str, path: str, dev: str) -> Mount:
    before, _, after = line.partition(" - ")
    fields, more = before.split(" "), after.split(" ")
    if len(fields) < 6 or len(more) < 2 or ":" not in fields[2]:  # noqa: PLR2004 - see proc(5)
        raise ValueError(f"{path} has a line that is no mount: {line[:80].strip()!r}")
    return Mount(fields[2], [_device(source, dev) for source in _unescaped(more[1]).split(":")], _unescaped(fields[4]))


def _swaps(proc: str, dev: str) -> list[str]:
    try:
        with open(os.path.join(proc, "swaps"), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()[1:]
    except FileNotFoundError:  # a kernel without swap
        return []
    return [_device(_unescaped(line.split()[0]), dev) for line in lines if line.strip()]


def _file_systems(sysfs: str) -> Iterator[tuple[str, str]]:
    """Yield fs/ext4/DEVICE, fs/xfs/DEVICE, ..., fs/btrfs/UUID/devices/DEVICE, and fs/bcachefs/UUID/dev-0/block."""
    root = os.path.join(sysfs, "fs")
    for kind in _listed(root):
        for name in _listed(os.path.join(root, kind)) if kind not in _NO_DISKS else []:
            yield name, kind
            folder = os.path.join(root, kind, name)
            for device in _listed(os.path.join(folder, "devices")):
                yield device, kind
            for member in _listed(folder) if kind == "bcachefs" else []:
                yield os.path.basename(os.path.realpath(os.path.join(folder, member, "block"))), kind


def _behind(sysfs: str, dev: str) -> Iterator[tuple[str, str]]:
    """Yield what is behind loop devices, and what this host exports to others by NVMe over a network."""
    for name in _listed(os.path.join(sysfs, "block")):
        if name.startswith("loop"):
            yield _named(os.path.join(sysfs, "block", name, "loop", "backing_file"), dev), name
    exported = os.path.join(sysfs, "kernel", "config", "nvmet", "subsystems")
    for subsystem in _listed(exported):
        for number in _listed(os.path.join(exported, subsystem, "namespaces")):
            path = os.path.join(exported, subsystem, "namespaces", number, "device_path")
            yield _named(path, dev), f"the NVMe target {subsystem}"


def _named(path: str, dev: str) -> str:
    """Return the device that a file names: none, if there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return _device(file.read().strip(), dev)
    except FileNotFoundError:
        return ""


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _device(path: str, dev: str) -> str:
    """Return the kernel's name of /dev/disk/by-uuid/..., for example, whose file may be gone."""
    path = path.removesuffix(" (deleted)")
    if not path.startswith("/dev/"):
        return path
    return os.path.basename(os.path.realpath(os.path.join(dev, path.removeprefix("/dev/"))))


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), text)
