"""Trees like the kernel's /sys, after Documentation/ABI/stable/sysfs-class-infiniband and sysfs-bus-pci."""

import os
from collections.abc import Mapping
from pathlib import Path

ACTIVE = {
    "state": "4: ACTIVE",
    "phys_state": "5: LinkUp",
    "rate": "400 Gb/sec (4X NDR)",
    "link_layer": "InfiniBand",
    "lid": "0x11",
}
DOWN = ACTIVE | {"state": "1: DOWN", "phys_state": "3: Disabled", "rate": "10 Gb/sec (4X SDR)"}
ROCE = ACTIVE | {"link_layer": "Ethernet", "rate": "200 Gb/sec (4X HDR)", "lid": "0x0"}
NVIDIA, AMD, ASPEED = "0x10de", "0x1002", "0x1a03"


class Tree:
    """A tree; paths of PCI functions are those below /sys/devices."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "class/infiniband").mkdir(parents=True)

    def function(self, path: str, kind: str, vendor: str = NVIDIA, numa: int = 0) -> Path:
        folder = self.root / "devices" / path
        write(folder, {"class": kind, "vendor": vendor, "numa_node": str(numa)})
        link(self.root / "bus/pci/devices" / folder.name, folder)
        return folder

    def gpu(self, path: str, kind: str = "0x030200", vendor: str = NVIDIA, numa: int = 0) -> None:
        self.function(path, kind, vendor, numa)

    def adapter(
        self,
        name: str,
        path: str | None = None,
        *ports: Mapping[str, str],
        guid: str = "506b:4b03:00c0:ffe0",
        numa: int = 0,
        **files: str,
    ) -> Path:
        card = None if path is None else self.function(path, "0x020700", "0x15b3", numa)
        folder = (card or self.root / "devices/virtual") / "infiniband" / name
        write(folder, {"node_guid": guid, "sys_image_guid": guid, "node_type": "1: CA", **files})
        for number, port in enumerate(ports, 1):
            write(folder / "ports" / str(number), port)
        if card is not None:
            link(folder / "device", card)
        link(self.root / "class/infiniband" / name, folder)
        return folder

    def nodes(self, count: int) -> None:
        for node in range(count):
            (self.root / f"devices/system/node/node{node}").mkdir(parents=True)


def write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))
