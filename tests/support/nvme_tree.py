"""A host's sysfs, proc and dev with NVMe disks, as the kernel documents them: sysfs-nvme, sysfs-block, proc(5)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from externalresource.drivers.loading import create_driver

ROOT_MOUNT = "22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/mapper/root rw\n"
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


class Tree:
    """The files of one host. Nothing is mounted but a root that stands on no NVMe disk."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.proc, self.dev = (folder / name for name in ("sys", "proc", "dev"))
        for path in (self.sys / "block", self.sys / "class/nvme", self.sys / "class/nvme-subsystem", self.sys / "fs"):
            path.mkdir(parents=True)
        self.dev.mkdir()
        self.write(self.proc / "self/mountinfo", ROOT_MOUNT)
        self.write(self.proc / "swaps", SWAPS)
        self._minor = 0

    @property
    def options(self) -> dict[str, str]:
        return {"sysfs": str(self.sys), "proc": str(self.proc), "dev": str(self.dev)}

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def controller(self, name: str, **attributes: str) -> Path:
        """Make a controller on the PCI bus: its folder, with the attributes."""
        number = name.removeprefix("nvme")
        bus = self.sys / f"devices/pci0000:00/0000:0{number}:00.0"
        folder = bus / "nvme" / name
        known = {
            "model": "SAMSUNG MZQL21T9HCJR-00A07              ",
            "serial": f"S64GNE0R{number}       ",
            "firmware_rev": "GDC5602Q",
            "state": "live",
            "transport": "pcie",
            "numa_node": "0",
        }
        for attribute, text in (known | attributes).items():
            self.write(folder / attribute, f"{text}\n")
        link(folder / "device", bus)
        link(self.sys / "class/nvme" / name, folder)
        return folder

    def subsystem(self, name: str, *controllers: str) -> Path:
        """Make a subsystem of these controllers, which are there already."""
        folder = self.sys / "devices/virtual/nvme-subsystem" / name
        self.write(folder / "model", "Linux\n")
        self.write(folder / "serial", "abcdef\n")
        for controller in controllers:
            link(folder / controller, self.sys / "class/nvme" / controller)
        link(self.sys / "class/nvme-subsystem" / name, folder)
        return folder

    def disk(self, parent: Path, name: str, **attributes: str) -> Path:
        """Make a disk of a controller or a subsystem, and its file in dev."""
        folder = self.block(parent / name, 3750748848)
        known = {"wwid": f"eui.0025388b{int.from_bytes(name.encode()):024x}", "nsid": "1", "hidden": "0", "ro": "0"}
        for attribute, text in (known | attributes).items():
            self.write(folder / attribute, f"{text}\n")
        link(folder / "device", parent)
        link(self.sys / "block" / name, folder)
        (self.dev / name).touch()
        return folder

    def block(self, folder: Path, sectors: int) -> Path:
        """Make a disk or a partition, with the next number."""
        self._minor += 1
        self.write(folder / "dev", f"259:{self._minor}\n")
        self.write(folder / "size", f"{sectors}\n")
        (folder / "holders").mkdir()
        return folder

    def partition(self, disk: Path, number: int) -> Path:
        folder = self.block(disk / f"{disk.name}p{number}", 2048)
        self.write(folder / "partition", f"{number}\n")
        return folder

    def mount(self, device: str, source: str, point: str, *, process: str = "self") -> None:
        """Add a line for a file system, whose number is `device`."""
        path = self.proc / process / "mountinfo"
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(f"36 22 {device} / {point} rw,noatime master:1 shared:2 - ext4 {source} rw,errors=continue\n")


def plain(folder: Path, amount: int) -> Mapping[str, str]:
    """Return the options for a host with so many disks, a controller for each."""
    tree = Tree(folder)
    for number in range(amount):
        tree.disk(tree.controller(f"nvme{number}"), f"nvme{number}n1")
    return tree.options


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


def driver(tree: Tree, **more: str) -> Any:
    return create_driver("nvme", tree.options | more)


def listed(tree: Tree, **more: str) -> dict[str, dict[str, str]]:
    """Return the properties of all disks by their name."""
    found = driver(tree, **more).devices()
    return {info.get_property("index"): {key: info.get_property(key) for key in info.get_keys()} for info in found}


def reason(tree: Tree, name: str = "nvme0n1", **more: str) -> str | None:
    return listed(tree, **more)[name].get("unusable")


def device_number(folder: Path) -> str:
    return (folder / "dev").read_text().strip()
