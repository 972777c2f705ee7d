"""The adapters in /sys/class/infiniband, as the kernel's Documentation/ABI/stable/sysfs-class-infiniband has them."""

import os
from collections.abc import Mapping
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
    """An RDMA device."""

    name: str
    #: Its folder, a link to that in /sys/devices.
    folder: str
    ports: tuple[Port, ...]
    #: `506b:4b03:00c0:ffee`; None for a virtual function that was given none.
    guid: str | None
    #: What else the kernel tells of the card, by the name of the property.
    card: Mapping[str, str | None]


def listed(root: str) -> list[Adapter]:
    """Return all adapters, in the order of their names. OSError if RDMA is not there or may not be looked at."""
    folder = os.path.join(root, _FOLDER)
    return [_adapter(name, os.path.join(folder, name)) for name in sorted(os.listdir(folder), key=sysfs.by_number)]


def _adapter(name: str, folder: str) -> Adapter:
    ports = [_port(number, os.path.join(folder, "ports", number)) for number in sysfs.names(folder, "ports")]
    guid, verbs = _guid(folder, "node_guid"), sysfs.names(folder, "device/infiniband_verbs")
    card = {
        "node_guid": guid,
        "sys_image_guid": _guid(folder, "sys_image_guid"),  # the same for all functions of one card
        "fw_ver": sysfs.value(folder, "fw_ver"),
        "uverbs": f"/dev/infiniband/{verbs[0]}" if len(verbs) == 1 else None,  # the file that a container needs
    }
    return Adapter(name, folder, tuple(ports), guid, card)


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
