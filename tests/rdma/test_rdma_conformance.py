"""The RDMA driver is one as all others are."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from externalresource.testing import DriverConformance
from tests.support.rdma_trees import ACTIVE, DOWN, Tree


def adapters(folder: Path, active: int, down: int = 0) -> Mapping[str, str]:
    tree = Tree(folder / "sys")
    for number in range(active + down):
        path, guid = f"pci0000:16/0000:{number:02x}:00.0", f"506b:4b03:00c0:{number:04x}"
        tree.adapter(f"mlx5_{number}", path, DOWN if number < down else ACTIVE, guid=guid)
    return {"sysfs": str(tree.root)}


class TestRDMA(DriverConformance):
    factory = "rdma"
    wrong_options: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"sysfs": "sys", "link-layer": "Token Ring", "state": "UP"}
    )

    def machine(self, folder: Path, amount: int) -> Mapping[str, str]:
        return adapters(folder, amount)

    def unusable(self, folder: Path) -> Mapping[str, str]:
        return adapters(folder, 2, down=1)

    def failing(self, folder: Path) -> Mapping[str, str]:
        return {"sysfs": str(folder / "none")}

    def slow(self, folder: Path) -> Mapping[str, str]:
        tree = Tree(folder / "sys")
        os.mkfifo(tree.adapter("mlx5_0", None, {}) / "ports/1/state")  # whose reader waits for a writer
        return {"sysfs": str(tree.root)}
