from pathlib import Path

import pytest

from tests.support.nvme_tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def disk(tree: Tree) -> Path:
    """The folder of one disk on one controller, which nothing uses."""
    return tree.disk(tree.controller("nvme0"), "nvme0n1")
