"""NVMe disks, each for one process: never one that is mounted, or used by anything that the kernel tells of."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from externalresource.api import Device, driver
from externalresource.errors import DiscoveryError
from externalresource_nvme import disks, node, uses
from externalresource_nvme.uses import Uses

VARIABLE = "NVME_DEVICES"
_NODES = "/dev"


@dataclass(frozen=True, slots=True)
class Options:
    """Where the kernel's trees are, and what is wanted of what they show."""

    sysfs: str = "/sys"
    proc: str = "/proc"
    dev: str = _NODES
    #: Also disks that are reached over a network, whose other hosts know nothing of this one's claims.
    fabrics: bool = False


@driver("nvme", Options)
def nvme(options: Options) -> Iterator[Device]:
    """NVMe disks (namespaces) that nothing on this host uses."""
    try:
        names = disks.names(options.sysfs)
    except OSError as error:
        raise DiscoveryError(f"the disks cannot be listed: {error.strerror}: {error.filename}") from None
    known = _uses(options)
    return _told_apart([_device(options, name, known) for name in names])


def _uses(options: Options) -> Uses | str:
    try:
        return uses.read(options.sysfs, options.proc, options.dev)
    except (OSError, ValueError) as error:
        return f"what is in use is not known: {_said(error)}"


def _device(options: Options, name: str, known: Uses | str) -> Device:
    path = os.path.join(options.dev, name)
    try:
        disk = disks.read(options.sysfs, name)
    except (OSError, ValueError) as error:
        return Device(name, properties={"path": path}, unusable=f"it cannot be read: {_said(error)}")
    faults = disk.faults(fabrics=options.fabrics)
    used = ""
    if isinstance(known, str):
        faults.append(known)
    elif used := ", ".join(use for part in disk.parts for use in known.of(part)):
        faults.append(f"in use: {used}")
    if not faults and (refusal := node.refusal(path, disk.parts[0].number)):
        faults.append(refusal)
    more = {"path": path, **({"in_use": used} if used else {})}
    return Device(name, disk.wwid, {**disk.properties, **more}, {VARIABLE: path}, "; ".join(faults) or None)


def _told_apart(found: Sequence[Device]) -> Iterator[Device]:
    """Take two disks of one identity for none: two paths to one, of which only one is seen to be used, or a lie."""
    count = Counter(device.uuid for device in found)
    for device in found:
        if device.uuid and count[device.uuid] > 1:
            doubt = f"another disk has the same identity ({device.uuid}): it may be the same one, by another path"
            yield replace(device, uuid=None, unusable="; ".join(filter(None, (device.unusable, doubt))))
        else:
            yield device


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())
