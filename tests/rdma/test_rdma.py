"""RDMA adapters: what is shown of them, which are handed out, and how a process is told."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from externalresource.coordination import Coordination
from externalresource.drivers.loading import create_driver
from externalresource.errors import ConfigurationError, DiscoveryError, ExternalResourceError, NotEnoughDevicesError
from tests.support.rdma_trees import ACTIVE, ASPEED, DOWN, ROCE, Tree

SWITCH = "pci0000:16/0000:16:01.0/0000:17:00.0"  # a root port, and a switch's port upstream


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "sys")


def rdma(tree: Tree, **options: str) -> Any:
    given = {"sysfs": str(tree.root)} | {name.replace("_", "-"): value for name, value in options.items()}
    return create_driver("externalresource_rdma.driver:rdma", given)


def shown(tree: Tree, **options: str) -> list[dict[str, str]]:
    return [{key: info.get_property(key) for key in info.get_keys()} for info in rdma(tree, **options).devices()]


def names(infos: Any) -> list[str]:
    return sorted(info.get_property("index") for info in infos)


def refusal(tree: Tree, amount: int = 1, **options: str) -> str:
    with pytest.raises(ExternalResourceError) as caught:
        rdma(tree, **options).retrieve_resource_info(amount)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_adapter_is_described_as_the_kernel_describes_it(tree: Tree) -> None:
    folder = tree.adapter(
        "mlx5_0", f"{SWITCH}/0000:18:00.0/0000:19:00.0", ACTIVE, hca_type="MT4129", fw_ver="28.39.1002", numa=1
    )
    (folder / "device/infiniband_verbs/uverbs3").mkdir(parents=True)
    assert shown(tree) == [
        {
            "index": "mlx5_0",
            "uuid": "506b:4b03:00c0:ffe0",
            "name": "MT4129",
            "ports": "port 1: InfiniBand, ACTIVE, LinkUp, 400 Gb/sec (4X NDR)",
            "state": "ACTIVE",
            "link_layer": "InfiniBand",
            "rate": "400 Gb/sec (4X NDR)",
            "node_guid": "506b:4b03:00c0:ffe0",
            "sys_image_guid": "506b:4b03:00c0:ffe0",
            "fw_ver": "28.39.1002",
            "uverbs": "/dev/infiniband/uverbs3",
            "pci.bus_id": "0000:19:00.0",
            "numa_node": "1",
        }
    ]


def test_what_the_kernel_does_not_tell_is_left_out(tree: Tree) -> None:
    folder = tree.adapter(
        "mlx5_0", f"{SWITCH}/0000:19:00.0", {"state": "4: ACTIVE"}, guid="0000:0000:0000:0000", numa=-1
    )
    (folder / "fw_ver").mkdir()  # cannot be read as a file
    (folder / "hca_type").touch()
    assert shown(tree) == [
        {"index": "mlx5_0", "ports": "port 1: ACTIVE", "state": "ACTIVE", "pci.bus_id": "0000:19:00.0"}
    ]


def test_adapter_of_software_has_no_place(tree: Tree) -> None:
    tree.gpu("pci0000:16/0000:16:01.0/0000:17:00.0")
    tree.adapter("rxe0", None, ROCE)
    [found] = shown(tree)
    assert not {"pci.bus_id", "numa_node", "gpu.nearest"} & set(found)
    assert names(rdma(tree).retrieve_resource_info(1)) == ["rxe0"]


def test_adapters_are_listed_by_their_numbers(tree: Tree) -> None:
    for number in (10, 2, 0):
        tree.adapter(f"mlx5_{number}", None, ACTIVE, guid=f"506b:4b03:00c0:{number:04x}")
    assert [device["index"] for device in shown(tree)] == ["mlx5_0", "mlx5_2", "mlx5_10"]


def test_adapter_without_an_active_port_is_listed_with_the_reason_and_not_handed_out(tree: Tree) -> None:
    tree.adapter("mlx5_0", None, DOWN, guid="506b:4b03:00c0:0000")
    tree.adapter("mlx5_1", None, ACTIVE, guid="506b:4b03:00c0:0001")
    reason = "no port is ACTIVE (port 1: InfiniBand, DOWN, Disabled, 10 Gb/sec (4X SDR))"
    assert [device.get("unusable") for device in shown(tree)] == [reason, None]
    assert names(rdma(tree).retrieve_resource_info(1)) == ["mlx5_1"]
    assert refusal(tree, 2) == f"2 wanted, only 1 of 2 are usable (rdma mlx5_0: {reason})"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "no port is ACTIVE (port 1: InfiniBand, DOWN)"),
        ({"link_layer": "Ethernet"}, "no Ethernet port is ACTIVE (port 1: InfiniBand, DOWN)"),
        ({"link_layer": "Ethernet", "state": "any"}, "it has no Ethernet port (port 1: InfiniBand, DOWN)"),
        ({"state": "INIT"}, "no port is INIT (port 1: InfiniBand, DOWN)"),
        ({"state": "DOWN"}, None),
        ({"state": "any", "link_layer": "InfiniBand"}, None),
    ],
)
def test_options_say_which_ports_will_do(tree: Tree, options: dict[str, str], reason: str | None) -> None:
    tree.adapter("mlx5_0", None, {"state": "1: DOWN", "link_layer": "InfiniBand"})
    [found] = shown(tree, **options)
    assert found.get("unusable") == reason


@pytest.mark.parametrize("text", ["", "nonsense", "4:", "0"])
def test_port_in_an_unknown_state_is_not_active(tree: Tree, text: str) -> None:
    tree.adapter("mlx5_0", None, {"state": text})
    assert refusal(tree).endswith("(rdma mlx5_0: no port is ACTIVE (port 1: in an unknown state))")


def test_adapter_that_has_just_gone_is_not_handed_out(tree: Tree) -> None:
    shutil.rmtree(tree.adapter("mlx5_0", None, ACTIVE))
    assert refusal(tree) == "1 wanted, only 0 of 1 are usable (rdma mlx5_0: it has no ports)"


def test_process_is_told_its_ports_and_no_others(tree: Tree) -> None:
    tree.adapter("mlx5_0", None, ROCE, ACTIVE, guid="506b:4b03:00c0:0000")
    tree.adapter("mlx5_1", None, ACTIVE, DOWN, guid="506b:4b03:00c0:0001")
    driver = rdma(tree, link_layer="InfiniBand")
    assert [info.get_property("rate") for info in driver.devices()] == ["400 Gb/sec (4X NDR)"] * 2
    assert driver.environment(driver.retrieve_resource_info(2)) == {
        "UCX_NET_DEVICES": "mlx5_0:2,mlx5_1:1",
        "NCCL_IB_HCA": "=mlx5_0:2,mlx5_1:1",  # one sign for the whole list; without it mlx5_1 is mlx5_10, too
    }


@pytest.mark.parametrize(
    ("gpu", "distance"),
    [
        (f"{SWITCH}/0000:18:01.0/0000:1a:00.0", "PIX"),
        (f"{SWITCH}/0000:18:00.0/0000:19:00.1", "PIX"),
        (f"{SWITCH}/0000:18:01.0/0000:1a:00.0/0000:1b:00.0/0000:1c:00.0", "PXB"),
        ("pci0000:16/0000:16:01.0/0000:17:00.1/0000:20:00.0", "PXB"),
        ("pci0000:16/0000:16:02.0/0000:30:00.0", "PHB"),
        ("pci0000:26/0000:26:01.0/0000:27:00.0", "NODE"),
        ("pci0001:16/0001:16:01.0/0001:17:00.0", "NODE"),
    ],
)
def test_distance_is_the_way_through_the_tree_in_the_words_of_nvidia_smi(tree: Tree, gpu: str, distance: str) -> None:
    tree.nodes(2)
    tree.adapter("mlx5_0", f"{SWITCH}/0000:18:00.0/0000:19:00.0", ACTIVE)
    tree.gpu(gpu)
    [found] = shown(tree)
    assert (found["gpu.distance"], found["gpu.nearest"]) == (distance, os.path.basename(gpu))


@pytest.mark.parametrize(
    ("nodes", "adapter", "gpu", "distance"),
    [
        (2, 0, 0, "NODE"),
        (2, 0, 1, "SYS"),
        (2, -1, -1, "SYS"),
        (2, 0, -1, "SYS"),
        (1, -1, -1, "NODE"),
        (1, 0, -1, "NODE"),
        (0, -1, 0, "NODE"),
    ],
)
def test_host_bridges_are_as_near_as_their_numa_nodes(
    tree: Tree, nodes: int, adapter: int, gpu: int, distance: str
) -> None:
    tree.nodes(nodes)
    tree.adapter("mlx5_0", "pci0000:16/0000:16:01.0/0000:17:00.0", ACTIVE, numa=adapter)
    tree.gpu("pci0000:26/0000:26:01.0/0000:27:00.0", numa=gpu)
    [found] = shown(tree)
    assert found["gpu.distance"] == distance


def test_nearest_gpus_are_all_that_are_so_near_of_all_vendors(tree: Tree) -> None:
    tree.adapter("mlx5_0", f"{SWITCH}/0000:18:00.0/0000:19:00.0", ACTIVE)
    tree.gpu(f"{SWITCH}/0000:18:02.0/0000:1b:00.0", kind="0x120000", vendor="0x1002")
    tree.gpu(f"{SWITCH}/0000:18:01.0/0000:1a:00.0", kind="0x030000")
    tree.gpu("pci0000:16/0000:16:02.0/0000:30:00.0")
    [found] = shown(tree)
    assert (found["gpu.distance"], found["gpu.nearest"]) == ("PIX", "0000:1a:00.0,0000:1b:00.0")


@pytest.mark.parametrize(("kind", "vendor"), [("0x030000", ASPEED), ("0x040300", "0x10de"), ("0x068000", "0x10de")])
def test_consoles_and_what_else_is_on_the_bus_are_no_gpus(tree: Tree, kind: str, vendor: str) -> None:
    tree.adapter("mlx5_0", f"{SWITCH}/0000:18:00.0/0000:19:00.0", ACTIVE)
    tree.function(f"{SWITCH}/0000:18:01.0/0000:1a:00.0", kind, vendor)
    [found] = shown(tree)
    assert "gpu.nearest" not in found


def test_adapter_is_the_same_under_another_name(tree: Tree, tmp_path: Path) -> None:
    file = str(tmp_path / "ledger")
    folder = tree.adapter("mlx5_0", None, ACTIVE)
    holder = rdma(tree, enable_coordination_mode="true", coordination_file=file)
    holder.retrieve_resource_info(1)
    (tree.root / "class/infiniband/mlx5_0").rename(tree.root / "class/infiniband/ibp25s0")
    assert folder.exists()
    with pytest.raises(NotEnoughDevicesError):
        rdma(tree, enable_coordination_mode="true", coordination_file=file).retrieve_resource_info(1)
    assert [claim.uuid for claim in Coordination(file, "rdma").held()] == ["506b:4b03:00c0:ffe0"]
    holder.close()


def test_guid_that_two_adapters_have_tells_neither(tree: Tree) -> None:
    for name in ("mlx5_0", "mlx5_1"):
        tree.adapter(name, None, ACTIVE)
    assert [device.get("uuid") for device in shown(tree)] == [None, None]
    assert names(rdma(tree).retrieve_resource_info(2)) == ["mlx5_0", "mlx5_1"]


def test_host_without_rdma_is_told_from_one_without_adapters(tree: Tree) -> None:
    assert refusal(tree) == "1 wanted, this host has 0"
    (tree.root / "class/infiniband").rmdir()
    assert refusal(tree) == (
        f"{tree.root}/class/infiniband is not there: no RDMA driver is loaded on this host "
        "(try: modprobe ib_uverbs mlx5_ib)"
    )


def test_folder_that_is_none_is_an_error_of_one_line(tree: Tree) -> None:
    (tree.root / "class/infiniband").rmdir()
    (tree.root / "class/infiniband").touch()
    with pytest.raises(DiscoveryError) as caught:
        rdma(tree).devices()
    assert str(caught.value) == f"{tree.root}/class/infiniband cannot be read: Not a directory"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sysfs": "sys"}, "the rdma driver: option 'sysfs' must be an absolute path, not 'sys'"),
        ({"link-layer": "infiniband"}, "any or InfiniBand or Ethernet"),
        ({"state": "UP"}, "ACTIVE"),
        ({"link_layer": "any"}, "did you mean 'link-layer'?"),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("?", r"\?")):
        create_driver("externalresource_rdma.driver:rdma", options)
