"""The adapters in /sys/class/infiniband, as the kernel's Documentation/ABI/stable/sysfs-class-infiniband has them."""

import os
from dataclasses import dataclass

from externalresource_rdma import sysfs

_FOLDER = "class/infiniband"


@dataclass(frozen=True, slots=True)
class Port:
    """A port. What the kernel does not tell is None."""

    number: str
    #: `ACTIVE`, `DOWN`, `INIT`, `ARMED`, `ACTIVE_DEFER`.
    state: str | None = None
    #: `LinkUp`, `Polling`, `Disabled`, ...
    physical: str | None = None
    #: `InfiniBand`, or `Ethernet` for RoCE and iWARP.
    link_layer: str | None = None
    #: `100 Gb/sec (4X EDR)`
    rate: str | None = None

    def __str__(self) -> str:
        known = [self.link_layer, self.state or "in an unknown state", self.physical, self.rate]
        return f"port {self.number}: {', '.join(text for text in known if text)}"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An RDMA device. What the kernel does not tell is None."""

    name: str
    #: Its folder, a link to that in /sys/devices.
    folder: str
    ports: tuple[Port, ...] = ()
    #: `506b:4b03:00c0:ffee`; None for a virtual function that was given none.
    guid: str | None = None
    #: The same for all functions of one card.
    system_guid: str | None = None
    #: `MT4129`
    model: str | None = None
    firmware: str | None = None
    #: `uverbs0`: the file in /dev/infiniband that a container needs.
    uverbs: str | None = None


def listed(root: str) -> list[Adapter]:
    """Return all adapters, in the order of their names. OSError if RDMA is not there or may not be looked at."""
    folder = os.path.join(root, _FOLDER)
    return [_adapter(name, os.path.join(folder, name)) for name in sorted(os.listdir(folder), key=sysfs.by_number)]


def _adapter(name: str, folder: str) -> Adapter:
    verbs = sysfs.names(folder, "device/infiniband_verbs")
    return Adapter(
        name,
        folder,
        ports=tuple(_port(number, os.path.join(folder, "ports", number)) for number in sysfs.names(folder, "ports")),
        guid=_guid(folder, "node_guid"),
        system_guid=_guid(folder, "sys_image_guid"),
        model=sysfs.value(folder, "hca_type"),
        firmware=sysfs.value(folder, "fw_ver"),
        uverbs=verbs[0] if len(verbs) == 1 else None,
    )


def _port(number: str, folder: str) -> Port:
    return Port(
        number,
        state=_word(folder, "state"),
        physical=_word(folder, "phys_state"),
        link_layer=sysfs.value(folder, "link_layer"),
        rate=sysfs.value(folder, "rate"),
    )


def _word(folder: str, name: str) -> str | None:
    """Return the word after the number in `4: ACTIVE`."""
    text = sysfs.value(folder, name)
    return text.partition(": ")[2] or None if text else None


def _guid(folder: str, name: str) -> str | None:
    text = sysfs.value(folder, name)
    return text if text and text.strip("0:") else None
