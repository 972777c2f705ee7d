"""The NVMe driver passes the tests that every driver passes."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from externalresource.testing import DriverConformance
from tests.support.nvme_tree import Tree, plain


class TestNVMe(DriverConformance):
    factory = "nvme"
    wrong_options = MappingProxyType({"fabrics": "perhaps"})

    def machine(self, folder: Path, amount: int) -> Mapping[str, str]:
        return plain(folder, amount)

    def unusable(self, folder: Path) -> Mapping[str, str]:
        tree = Tree(folder)
        tree.disk(tree.controller("nvme0"), "nvme0n1")
        tree.disk(tree.controller("nvme1", state="dead"), "nvme1n1")
        return tree.options

    def failing(self, folder: Path) -> Mapping[str, str]:
        return {"sysfs": str(folder / "none")}

    def slow(self, folder: Path) -> Mapping[str, str]:
        tree = Tree(folder)
        size = tree.disk(tree.controller("nvme0"), "nvme0n1") / "size"
        size.unlink()
        os.mkfifo(size)  # whose reader waits for a writer
        return tree.options
