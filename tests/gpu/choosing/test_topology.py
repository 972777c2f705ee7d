from itertools import pairwise

import pytest

from externalresource_gpu.choosing import topology
from externalresource_gpu.device import Device

WORST_FIRST = ("?", "SYS", "NODE", "PHB", "PXB", "PIX", "PSB", "NV1", "NV2", "NV4", "NV12", "NV18", "X")


def on_nodes(*nodes: int | None) -> list[Device]:
    return [Device(index, numa_node=node) for index, node in enumerate(nodes)]


@pytest.mark.parametrize(("worse", "better"), list(pairwise(WORST_FIRST)))
def test_more_nvlinks_are_better_than_fewer_and_those_than_the_ways_over_pcie(worse: str, better: str) -> None:
    assert topology.rank(worse) < topology.rank(better)


def test_soc_is_the_old_word_for_sys() -> None:
    assert topology.rank("SOC") == topology.rank("SYS")


@pytest.mark.parametrize("link", [None, "", "?", "N/A", "NV", "NV0", "NV#", "NV-1", "NV²", "NV٣", "nv4", "NV12345"])
def test_link_that_is_none_is_unknown(link: str | None) -> None:
    assert topology.rank(link) == 0


@pytest.mark.parametrize("link", ["NV99", "NV100", "NV9999"])
def test_no_number_of_links_is_better_than_one_gpu(link: str) -> None:
    assert topology.rank("NV98") < topology.rank(link) < topology.SAME_GPU


def test_link_is_the_same_from_both_sides() -> None:
    links = {(0, 3): "NV2"}
    assert [topology.link(links, *pair) for pair in [(0, 3), (3, 0), (3, 3), (0, 1)]] == ["NV2", "NV2", "X", None]


def test_matrix_has_a_row_for_each_gpu_as_nvidia_smi_prints_it() -> None:
    assert topology.matrix({(0, 1): "NV4", (0, 3): "SYS"}, [Device(0), Device(1), Device(3)]) == [
        ["X", "NV4", "SYS"],
        ["NV4", "X", "?"],
        ["SYS", "?", "X"],
    ]


def test_matrix_follows_the_order_of_the_devices() -> None:
    assert topology.matrix({(0, 1): "NV4"}, [Device(1), Device(0)]) == [["X", "NV4"], ["NV4", "X"]]
    assert topology.matrix({}, []) == []


def test_slices_of_one_gpu_are_closest() -> None:
    one, other = Device(0, mig_index=0), Device(0, mig_index=1)
    assert topology.closeness({}, one, other) > topology.closeness({(0, 1): "NV18"}, *on_nodes(0, 0))


def test_numa_node_decides_between_links_that_look_alike() -> None:
    links = {(0, 1): "NV12", (0, 2): "NV12", (1, 2): "NV18"}
    near, far, nearest = (topology.closeness(links, *pair) for pair in pairs(on_nodes(0, 0, 1)))
    assert far < near < nearest


def test_numa_node_stands_in_for_an_unknown_link_only() -> None:
    same, unknown, _ = (topology.closeness({}, *pair) for pair in pairs(on_nodes(0, 0, None)))
    assert unknown == 0 < topology.closeness({}, *on_nodes(0, 1)) < same
    assert topology.closeness({(0, 1): "SYS"}, *on_nodes(0, 0)) < same
    assert topology.closeness({}, *on_nodes(0, 1)) == topology.closeness({(0, 1): "SYS"}, *on_nodes(0, 1))


def pairs(devices: list[Device]) -> list[tuple[Device, Device]]:
    first, second, third = devices
    return [(first, second), (first, third), (second, third)]
