"""By what an NVMe disk is known, and through how many controllers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.nvme_tree import Tree, device_number, listed, reason


class TestIdentity:
    """A disk's UUID is the same by whatever path and in whatever container it is seen."""

    @pytest.mark.parametrize(
        ("attributes", "uuid"),
        [
            ({"wwid": "uuid.0e4a2a5c-1f52-4d0b-8a8c-3b1f7f2d5a11"}, "uuid.0e4a2a5c-1f52-4d0b-8a8c-3b1f7f2d5a11"),
            (
                {"wwid": "nvme.144d-533634474e45-53414d53554e47-00000001"},
                "nvme.144d-533634474e45-53414d53554e47-00000001",
            ),
            (
                {"wwid": "", "nguid": "36344730-5250-0001-0025-384300000001"},
                "nguid.36344730-5250-0001-0025-384300000001",
            ),
            ({"wwid": "", "eui": "00 25 38 5b 71 b0 a3 c2"}, "eui.0025385b71b0a3c2"),
            (
                {"wwid": "", "nguid": "00000000-0000-0000-0000-000000000000", "eui": "00 25 38 5b 71 b0 a3 c2"},
                "eui.0025385b71b0a3c2",
            ),
        ],
    )
    def test_identity_is_what_the_kernel_prefers(self, tree: Tree, attributes: dict[str, str], uuid: str) -> None:
        tree.disk(tree.controller("nvme0"), "nvme0n1", **attributes)
        assert listed(tree)["nvme0n1"]["uuid"] == uuid

    @pytest.mark.parametrize(
        "attributes",
        [{"wwid": ""}, {"wwid": "eui.0000000000000000"}, {"wwid": "", "eui": "00 00 00 00 00 00 00 00"}],
    )
    def test_disk_without_identity_is_kept_back(self, tree: Tree, attributes: dict[str, str]) -> None:
        tree.disk(tree.controller("nvme0"), "nvme0n1", **attributes)
        assert reason(tree) == "it has no identity (wwid)"
        assert "uuid" not in listed(tree)["nvme0n1"]

    def test_two_disks_of_one_identity_are_both_kept_back(self, tree: Tree) -> None:
        first, _, _ = (
            tree.disk(tree.controller(f"nvme{n}"), f"nvme{n}n1", wwid=f"eui.{7 if n < 2 else 8:016x}") for n in range(3)
        )
        tree.mount(device_number(first), "/dev/nvme0n1", "/data")
        doubt = "another disk has the same identity (eui.0000000000000007): it may be the same one, by another path"
        assert reason(tree, "nvme0n1") == f"in use: nvme0n1 is mounted at /data; {doubt}"
        assert reason(tree, "nvme1n1") == doubt
        assert reason(tree, "nvme2n1") is None


class TestMultipath:
    """With multipath a disk is one of its subsystem, and each path to it one of a controller."""

    @pytest.fixture
    def shared(self, tree: Tree) -> Callable[..., Path]:
        """Make nvme5n1 of a subsystem with the controllers nvme0 and nvme1, which have these states and nodes."""

        def make(states: tuple[str, str] = ("live", "live"), nodes: tuple[str, str] = ("0", "0")) -> Path:
            for number, (state, numa_node) in enumerate(zip(states, nodes, strict=True)):
                controller = tree.controller(f"nvme{number}", state=state, numa_node=numa_node)
                path = tree.disk(controller, f"nvme5c{number}n1", hidden="1", wwid="eui.0000000000000005")
                (tree.dev / path.name).unlink()
            return tree.disk(tree.subsystem("nvme-subsys5", "nvme0", "nvme1"), "nvme5n1", wwid="eui.0000000000000005")

        return make

    def test_disk_is_shown_once_and_its_paths_are_none(self, tree: Tree, shared: Callable[..., Path]) -> None:
        shared()
        found = listed(tree)
        assert list(found) == ["nvme5n1"]
        assert found["nvme5n1"].get("unusable") is None
        assert {key: found["nvme5n1"][key] for key in ("model", "serial", "controllers", "numa_node")} == {
            "model": "Linux",
            "serial": "abcdef",
            "controllers": "nvme0,nvme1",
            "numa_node": "0",
        }

    def test_one_live_controller_is_enough(self, tree: Tree, shared: Callable[..., Path]) -> None:
        shared(states=("dead", "live"))
        assert reason(tree, "nvme5n1") is None

    def test_no_live_controller_is_not(self, tree: Tree, shared: Callable[..., Path]) -> None:
        shared(states=("dead", "connecting"))
        assert reason(tree, "nvme5n1") == "no controller of it is live (nvme0 is dead, nvme1 is connecting)"

    def test_node_is_told_only_if_all_controllers_are_there(self, tree: Tree, shared: Callable[..., Path]) -> None:
        shared(nodes=("0", "1"))
        assert not {"numa_node", "pci.bus_id"} & set(listed(tree)["nvme5n1"])

    def test_mounted_disk_of_a_subsystem_is_in_use(self, tree: Tree, shared: Callable[..., Path]) -> None:
        tree.mount(device_number(shared()), "/dev/nvme5n1", "/data")
        assert reason(tree, "nvme5n1") == "in use: nvme5n1 is mounted at /data"
