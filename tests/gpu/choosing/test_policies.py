"""What each policy takes, on machines whose matrices were printed by `nvidia-smi topo -m` and published."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from random import Random
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from externalresource.coordination import Claim
from externalresource_gpu.choosing import connected, topology
from externalresource_gpu.choosing.policies import POLICIES, USED, foreign, select
from externalresource_gpu.device import Device, Process

RECORDED = Path(__file__).parents[3].parent / "shared/data/nvidia-smi/xml"

Links = dict[tuple[int, int], str]


@dataclass(frozen=True)
class Board:
    gpus: Sequence[Device]
    links: Links = field(default_factory=dict)

    def take(
        self, amount: int, *, policy: str = "connected", taken: Sequence[int] = (), free: Sequence[Device] = ()
    ) -> list[int]:
        """Return the GPUs that a request gets while others hold those that are taken."""
        claims = [claim(self.gpus[index]) for index in taken]
        free = free or [gpu for gpu in self.gpus if gpu.index not in taken]
        return [gpu.index for gpu in self.select(free, claims, amount, policy)]

    def select(self, free: Sequence[Device], claims: Sequence[Claim], amount: int, policy: str) -> list[Device]:
        return select(free, claims, amount, policy=policy, links=self.links, devices=self.gpus)


def board(matrix: str, nodes: str = "") -> Board:
    """Return the machine of a matrix; `nodes` has a digit for the NUMA node of each GPU."""
    rows = [line.split() for line in matrix.strip().splitlines()]
    size = len(rows)
    gpus = [Device(index, uuid=f"GPU-{index}", numa_node=int(nodes[index]) if nodes else None) for index in range(size)]
    return Board(gpus, {(one, other): rows[one][other] for one in range(size) for other in range(one + 1, size)})


def switched(link: str, nodes: str) -> Board:
    """Return a machine whose NVSwitch connects all GPUs alike."""
    size = len(nodes)
    return board(
        "\n".join(" ".join("X" if one == other else link for other in range(size)) for one in range(size)), nodes
    )


def divided(*counts: int, nodes: str = "") -> Board:
    """Return a machine with so many MIG instances on each GPU."""
    gpus = []
    for index, count in enumerate(counts):
        node = int(nodes[index]) if nodes else None
        gpu = Device(index, uuid=f"GPU-{index}", mig_mode="Enabled", numa_node=node)
        instances = tuple(
            Device(index, uuid=f"MIG-{index}-{number}", mig_index=number, parent_uuid=gpu.uuid, numa_node=node)
            for number in range(count)
        )
        gpus.append(replace(gpu, instances=instances))
    return Board(gpus)


def claim(device: Device) -> Claim:
    details = {"uuid": device.uuid, "parent_uuid": device.parent_uuid, "parent_token": device.parent_token}
    return Claim(device.token, 1, {key: value for key, value in details.items() if value})


# DGX-1 with V100, a hybrid cube mesh: the links of NVIDIA/nccl#671 (GPU 0 to 3) and of go-gpuallocator's
# gpuallocator/common_test.go (all); between others there is SYS.
DGX_1 = board(
    """
    X   NV1 NV1 NV2 NV2 SYS SYS SYS
    NV1 X   NV2 NV1 SYS NV2 SYS SYS
    NV1 NV2 X   NV2 SYS SYS NV1 SYS
    NV2 NV1 NV2 X   SYS SYS SYS NV1
    NV2 SYS SYS SYS X   NV1 NV1 NV2
    SYS NV2 SYS SYS NV1 X   NV2 NV1
    SYS SYS NV1 SYS NV1 NV2 X   NV2
    SYS SYS SYS NV1 NV2 NV1 NV2 X
    """,
    "00001111",
)
# The same with P100: one link each (go-gpuallocator's gpuallocator/common_test.go).
DGX_1_PASCAL = Board(DGX_1.gpus, {pair: "NV1" if link.startswith("NV") else link for pair, link in DGX_1.links.items()})
DGX_2 = switched("NV6", "0000000011111111")  # NVIDIA/nccl-tests#78
DGX_A100 = switched("NV12", "33117755")  # NVIDIA/nccl#1505
DGX_H100 = switched("NV18", "00001111")  # vllm-project/vllm#13855
H100_QUAD = switched("NV6", "3175")  # NVIDIA/nccl#1617
# 8 A6000 with bridges between pairs: pytorch/pytorch#79299
A6000 = board(
    """
    X    NV4  NODE NODE SYS  SYS  SYS  SYS
    NV4  X    NODE NODE SYS  SYS  SYS  SYS
    NODE NODE X    NV4  SYS  SYS  SYS  SYS
    NODE NODE NV4  X    SYS  SYS  SYS  SYS
    SYS  SYS  SYS  SYS  X    NV4  NODE NODE
    SYS  SYS  SYS  SYS  NV4  X    NODE NODE
    SYS  SYS  SYS  SYS  NODE NODE X    NV4
    SYS  SYS  SYS  SYS  NODE NODE NV4  X
    """,
    "00001111",
)
# Two PCIe switches behind each of two processors: lattice/quda#669
SWITCHES = board(
    """
    X   PIX PXB PXB SYS SYS SYS SYS
    PIX X   PXB PXB SYS SYS SYS SYS
    PXB PXB X   PIX SYS SYS SYS SYS
    PXB PXB PIX X   SYS SYS SYS SYS
    SYS SYS SYS SYS X   PIX PXB PXB
    SYS SYS SYS SYS PIX X   PXB PXB
    SYS SYS SYS SYS PXB PXB X   PIX
    SYS SYS SYS SYS PXB PXB PIX X
    """,
    "00001111",
)
# A pair on a switch and a single one behind each of two processors: pytorch/pytorch#47885
THREE_AND_THREE = board(
    """
    X    PIX  NODE SYS  SYS  SYS
    PIX  X    NODE SYS  SYS  SYS
    NODE NODE X    SYS  SYS  SYS
    SYS  SYS  SYS  X    PIX  NODE
    SYS  SYS  SYS  PIX  X    NODE
    SYS  SYS  SYS  NODE NODE X
    """,
    "000111",
)
# 8 RTX 4090 in a virtual machine that shows no way but SYS: NVIDIA/go-gpuallocator#17
ALL_SYS = switched("SYS", "00001111")
# 4 RTX 8000 with bridges across: go-gpuallocator's gpuallocator/common_test.go
BRIDGED_ACROSS = board(
    """
    X    NODE SYS  NV2
    NODE X    NV2  SYS
    SYS  NV2  X    NODE
    NV2  SYS  NODE X
    """,
    "0011",
)
# A bridged pair and a pair without: NVIDIA/k8s-device-plugin#436, here as two A10 and two A100.
MIXED = board(
    """
    X    NODE SYS  SYS
    NODE X    SYS  SYS
    SYS  SYS  X    NV12
    SYS  SYS  NV12 X
    """,
    "0011",
)


# ---- connected: what a person would take ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "amount", "taken", "expected"),
    [
        pytest.param(DGX_1, 2, [], [0, 3], id="dgx-1: a pair with two links, within a quad"),
        pytest.param(DGX_1, 2, [0, 3], [1, 2], id="dgx-1: the other half of the quad"),
        pytest.param(DGX_1, 2, [0, 1, 2, 3], [4, 7], id="dgx-1: the next pair"),
        pytest.param(DGX_1, 2, [0, 1, 2, 3, 4, 7], [5, 6], id="dgx-1: the last pair"),
        pytest.param(DGX_1, 2, [2, 4, 5, 6, 7], [0, 3], id="dgx-1: two links rather than one"),
        pytest.param(DGX_1, 2, [2, 3, 5, 6, 7], [0, 4], id="dgx-1: two links, though they cross the quads"),
        pytest.param(DGX_1, 3, [], [0, 2, 3], id="dgx-1: three of a quad, with five of its links"),
        pytest.param(DGX_1, 4, [], [0, 1, 2, 3], id="dgx-1: a quad"),
        pytest.param(DGX_1, 4, [1], [4, 5, 6, 7], id="dgx-1: the quad that is whole"),
        pytest.param(DGX_1, 1, [], [0], id="dgx-1: one of any"),
        pytest.param(DGX_1, 1, [0], [3], id="dgx-1: one of the quad that is broken, which leaves a pair"),
        pytest.param(DGX_1, 1, [5], [6], id="dgx-1: the same, in the other quad"),
        pytest.param(DGX_1, 2, [0, 5], [1, 2], id="dgx-1: of a broken quad what leaves GPU 3 its link across"),
        pytest.param(DGX_1_PASCAL, 2, [], [0, 1], id="pascal: a pair within a quad"),
        pytest.param(DGX_1_PASCAL, 4, [], [0, 1, 2, 3], id="pascal: a quad"),
        pytest.param(DGX_1_PASCAL, 4, [3], [4, 5, 6, 7], id="pascal: the quad that is whole"),
        pytest.param(DGX_2, 8, [], [0, 1, 2, 3, 4, 5, 6, 7], id="dgx-2: one board"),
        pytest.param(DGX_2, 8, [0], [8, 9, 10, 11, 12, 13, 14, 15], id="dgx-2: the board that is whole"),
        pytest.param(DGX_2, 4, [0], [1, 2, 3, 4], id="dgx-2: what is left of the board that is broken"),
        pytest.param(DGX_2, 2, list(range(1, 8)), [8, 9], id="dgx-2: two of one board"),
        pytest.param(DGX_2, 1, list(range(1, 8)), [0], id="dgx-2: the last of its board"),
        pytest.param(DGX_A100, 2, [], [0, 1], id="dgx-a100: two behind one switch"),
        pytest.param(DGX_A100, 2, [0], [2, 3], id="dgx-a100: the next two behind one switch"),
        pytest.param(DGX_A100, 1, [2], [3], id="dgx-a100: the neighbour of one that is taken"),
        pytest.param(DGX_A100, 4, [0, 5], [2, 3, 6, 7], id="dgx-a100: two times two"),
        pytest.param(DGX_A100, 3, [], [0, 1, 2], id="dgx-a100: two and one"),
        pytest.param(DGX_A100, 3, [7], [0, 1, 6], id="dgx-a100: two, and one that is alone"),
        pytest.param(DGX_H100, 4, [1, 2], [4, 5, 6, 7], id="dgx-h100: one processor's"),
        pytest.param(DGX_H100, 2, [1, 2], [0, 3], id="dgx-h100: what is left behind one processor"),
        pytest.param(H100_QUAD, 2, [], [0, 1], id="four alike: in order"),
        pytest.param(A6000, 2, [], [0, 1], id="a6000: a bridged pair"),
        pytest.param(A6000, 2, [0], [2, 3], id="a6000: the pair beside one that is broken"),
        pytest.param(A6000, 2, [0, 2, 4], [6, 7], id="a6000: the last pair"),
        pytest.param(A6000, 2, [0, 2, 4, 6], [1, 3], id="a6000: behind one processor, without a bridge"),
        pytest.param(A6000, 1, [0], [1], id="a6000: one without its partner"),
        pytest.param(A6000, 1, [0, 1], [2], id="a6000: one of the pair whose neighbours are taken"),
        pytest.param(A6000, 4, [0], [4, 5, 6, 7], id="a6000: one processor's"),
        pytest.param(A6000, 3, [0, 4], [1, 2, 3], id="a6000: a pair and one that is alone"),
        pytest.param(SWITCHES, 2, [0, 2], [4, 5], id="switches: behind one switch"),
        pytest.param(SWITCHES, 2, [0, 2, 4, 6], [1, 3], id="switches: behind two of one processor"),
        pytest.param(SWITCHES, 3, [], [0, 1, 2], id="switches: behind one processor"),
        pytest.param(SWITCHES, 3, [1, 3, 4], [5, 6, 7], id="switches: the processor that has three"),
        pytest.param(SWITCHES, 1, [6], [7], id="switches: one whose neighbour is taken"),
        pytest.param(SWITCHES, 6, [7], [0, 1, 2, 3, 4, 5], id="switches: pairs before a single one"),
        pytest.param(THREE_AND_THREE, 2, [], [0, 1], id="three: the pair on a switch"),
        pytest.param(THREE_AND_THREE, 1, [], [2], id="three: the one without a partner"),
        pytest.param(THREE_AND_THREE, 1, [2], [5], id="three: the other one without a partner"),
        pytest.param(THREE_AND_THREE, 2, [0], [3, 4], id="three: the pair that is whole"),
        pytest.param(THREE_AND_THREE, 3, [4], [0, 1, 2], id="three: one processor's"),
        pytest.param(ALL_SYS, 2, [0, 1, 2], [4, 5], id="all SYS: NUMA nodes tell more"),
        pytest.param(ALL_SYS, 1, [4], [5], id="all SYS: of the node that is broken"),
        pytest.param(BRIDGED_ACROSS, 2, [], [0, 3], id="across: a bridge rather than a processor"),
        pytest.param(BRIDGED_ACROSS, 2, [0], [1, 2], id="across: the other bridge"),
        pytest.param(BRIDGED_ACROSS, 2, [0, 2], [1, 3], id="across: what is left"),
        pytest.param(MIXED, 2, [], [2, 3], id="mixed: the bridged pair"),
        pytest.param(MIXED, 1, [], [0], id="mixed: one that is not bridged"),
        pytest.param(MIXED, 1, [0], [1], id="mixed: its neighbour"),
        pytest.param(MIXED, 2, [2], [0, 1], id="mixed: one processor's"),
        pytest.param(MIXED, 3, [], [0, 2, 3], id="mixed: the bridged pair and one more"),
    ],
)
def test_connected_takes_what_a_person_would(board: Board, amount: int, taken: list[int], expected: list[int]) -> None:
    assert board.take(amount, taken=taken) == expected


@pytest.mark.parametrize("machine", [DGX_1, DGX_1_PASCAL, DGX_2, DGX_A100, A6000, SWITCHES, BRIDGED_ACROSS])
@pytest.mark.parametrize("amount", [1, 2, 4])
def test_requests_one_after_the_other_are_as_well_connected_as_the_first(machine: Board, amount: int) -> None:
    def worst(indices: list[int]) -> int:
        return min((topology.rank(machine.links[pair]) for pair in combinations(indices, 2)), default=0)

    first = machine.take(amount)
    taken = list(first)
    while len(taken) < len(machine.gpus):
        another = machine.take(amount, taken=taken)
        assert worst(another) == worst(first)
        taken += another
    assert len(set(taken)) == len(machine.gpus)


@pytest.mark.parametrize(("one", "then"), [(1, 2), (1, 4), (2, 4)])
@pytest.mark.parametrize("machine", [DGX_1, DGX_1_PASCAL, DGX_2, DGX_A100, A6000, SWITCHES])
def test_small_requests_leave_large_ones_as_well_connected_as_they_can(machine: Board, one: int, then: int) -> None:
    def worst(indices: list[int]) -> int:
        return min(topology.rank(machine.links[pair]) for pair in combinations(indices, 2))

    taken: list[int] = []
    for _ in range(then // one):
        taken += machine.take(one, taken=taken)
        assert worst(machine.take(then, taken=taken)) == worst(machine.take(then))


def test_worst_link_counts_more_than_all_others() -> None:
    host = board(
        """
        X    NV12 NV12 SYS  SYS  SYS
        NV12 X    SYS  SYS  SYS  SYS
        NV12 SYS  X    SYS  SYS  SYS
        SYS  SYS  SYS  X    NODE NODE
        SYS  SYS  SYS  NODE X    NODE
        SYS  SYS  SYS  NODE NODE X
        """
    )
    assert host.take(3) == [3, 4, 5]
    assert host.take(3, taken=[4]) == [0, 1, 2]


def test_links_of_the_set_count_more_than_what_is_cut_off() -> None:
    host = board(
        """
        X    NODE SYS  SYS  SYS
        NODE X    SYS  SYS  SYS
        SYS  SYS  X    PHB  NV4
        SYS  SYS  PHB  X    NV4
        SYS  SYS  NV4  NV4  X
        """
    )
    assert host.take(2) == [2, 4]
    assert host.take(2, taken=[4]) == [2, 3]


def test_among_equals_it_takes_what_leaves_a_quad_whole() -> None:
    mesh = Board([replace(gpu, numa_node=None) for gpu in DGX_1.gpus], DGX_1.links)
    assert mesh.take(1, taken=[4]) == [7]  # and not 0, which has lost as much
    assert mesh.take(1, taken=[0]) == [3]
    assert mesh.take(2) == [0, 3]
    offered = [mesh.gpus[index] for index in (4, 0, 3, 7, 1, 2, 5, 6)]
    assert mesh.take(2, free=offered) == [4, 7]  # and not 4 and 0, which come first


def test_what_comes_first_is_what_was_offered_first() -> None:
    offered = [DGX_H100.gpus[index] for index in (6, 1, 5, 0, 2)]
    assert DGX_H100.take(2, free=offered) == [6, 5]
    assert DGX_H100.take(3, free=offered) == [1, 0, 2]


def test_without_links_numa_nodes_connect() -> None:
    host = Board([Device(index, numa_node=index % 2) for index in range(8)])
    assert host.take(4) == [0, 2, 4, 6]
    assert host.take(2, taken=[0, 2, 4]) == [1, 3]
    assert host.take(1, taken=[0, 2, 4]) == [6]


def test_without_links_and_nodes_it_takes_the_first() -> None:
    assert Board([Device(index) for index in range(8)]).take(3, taken=[1]) == [0, 2, 3]


def test_unknown_link_is_the_last_choice() -> None:
    host = Board([Device(index) for index in range(4)], {(0, 1): "SYS", (2, 3): "NODE"})
    assert host.take(2) == [2, 3]
    assert host.take(2, taken=[2]) == [0, 1]


def test_slices_of_one_gpu_are_closest() -> None:
    host = divided(2, 3, 7)
    everything = [instance for gpu in host.gpus for instance in gpu.instances]
    tokens = [[device.place for device in host.select(everything, [], amount, "connected")] for amount in (2, 3, 4)]
    assert tokens == [["0:0", "0:1"], ["1:0", "1:1", "1:2"], ["2:0", "2:1", "2:2", "2:3"]]


def test_single_slice_comes_from_the_gpu_with_the_fewest_left() -> None:
    host = divided(7, 7, 7)
    free = [*host.gpus[0].instances, *host.gpus[1].instances[2:], *host.gpus[2].instances]
    assert [device.place for device in host.select(free, [], 1, "connected")] == ["1:2"]


def test_gpus_and_slices_go_together_on_a_mixed_host() -> None:
    host = divided(0, 3)
    free = [host.gpus[0], *host.gpus[1].instances]
    assert [device.place for device in host.select(free, [], 3, "connected")] == ["1:0", "1:1", "1:2"]
    assert [device.place for device in host.select(free, [], 1, "connected")] == ["0"]


# ---- pack -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "amount", "taken", "expected"),
    [
        pytest.param(DGX_H100, 1, [], [0], id="nothing is claimed"),
        pytest.param(DGX_H100, 1, [5], [4], id="the node that is begun"),
        pytest.param(DGX_H100, 1, [0, 5, 6], [4], id="of two that are begun the one with less left"),
        pytest.param(DGX_H100, 2, [0, 5, 6], [4, 7], id="the smallest rest that is enough"),
        pytest.param(DGX_H100, 3, [0, 5, 6], [1, 2, 3], id="one node, rather than a part of two"),
        pytest.param(DGX_H100, 4, [0, 5, 6], [1, 2, 3, 4], id="all of the largest rest, then of the next"),
        pytest.param(DGX_H100, 5, [0], [1, 2, 3, 4, 5], id="a node that is whole comes last"),
        pytest.param(DGX_A100, 1, [2], [3], id="the neighbour"),
        pytest.param(DGX_A100, 2, [2], [0, 3], id="the neighbour, then one that is whole"),
        pytest.param(DGX_A100, 3, [0, 2], [1, 3, 4], id="both neighbours, then one that is whole"),
        pytest.param(DGX_A100, 3, [], [0, 1, 2], id="no more nodes than it takes"),
        pytest.param(SWITCHES, 1, [6], [7], id="within a node the one that is alone on its switch"),
        pytest.param(SWITCHES, 2, [6], [4, 5], id="within a node what is connected"),
    ],
)
def test_pack_uses_up_nodes_that_are_begun(board: Board, amount: int, taken: list[int], expected: list[int]) -> None:
    assert board.take(amount, policy="pack", taken=taken) == expected


@pytest.mark.parametrize(
    ("counts", "amount", "taken", "expected"),
    [
        pytest.param((7, 7), 1, [], ["0:0"], id="nothing is claimed"),
        pytest.param((7, 7), 1, ["1:3"], ["1:0"], id="the GPU that is begun"),
        pytest.param((7, 7), 3, ["1:3"], ["1:0", "1:1", "1:2"], id="one GPU"),
        pytest.param((7, 7), 7, ["1:3"], ["0:0", "1:0", "1:1", "1:2", "1:4", "1:5", "1:6"], id="then the next"),
        pytest.param((7, 2, 7), 2, [], ["1:0", "1:1"], id="the smallest GPU that is enough"),
        pytest.param((3, 3, 3), 1, ["0:0", "2:0", "2:1"], ["2:2"], id="the smallest rest"),
        pytest.param((3, 3, 3), 3, ["0:0", "2:0", "2:1"], ["0:1", "0:2", "2:2"], id="rests before a whole one"),
    ],
)
def test_pack_fills_one_gpu_first(counts: tuple[int, ...], amount: int, taken: list[str], expected: list[str]) -> None:
    assert slices(divided(*counts), amount, taken, "pack") == expected


def test_pack_begins_no_gpu_while_one_on_another_node_is_begun() -> None:
    host = divided(7, 1, 7, 7, nodes="0011")
    assert slices(host, 1, ["1:0", "2:0"], "pack") == ["2:1"]


def slices(host: Board, amount: int, taken: list[str], policy: str) -> list[str]:
    everything = [instance for gpu in host.gpus for instance in gpu.instances]
    claims = [claim(instance) for instance in everything if instance.place in taken]
    free = [instance for instance in everything if instance.place not in taken]
    return [device.place for device in host.select(free, claims, amount, policy)]


# ---- spread ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "amount", "taken", "expected"),
    [
        pytest.param(DGX_H100, 1, [], [0], id="nothing is claimed"),
        pytest.param(DGX_H100, 1, [0], [4], id="the other node"),
        pytest.param(DGX_H100, 1, [0, 4], [1], id="both alike"),
        pytest.param(DGX_H100, 1, [0, 4, 5], [1], id="the node with fewer claims"),
        pytest.param(DGX_H100, 4, [], [0, 1, 4, 5], id="half of each node"),
        pytest.param(DGX_H100, 3, [0, 1], [2, 4, 5], id="until they are even, then the first"),
        pytest.param(DGX_H100, 6, [0, 1], [2, 3, 4, 5, 6, 7], id="until a node is used up"),
        pytest.param(DGX_A100, 4, [], [0, 2, 4, 6], id="one of each node"),
        pytest.param(DGX_A100, 3, [2, 4], [0, 1, 6], id="the nodes without a claim, then the first"),
    ],
)
def test_spread_takes_from_the_node_with_the_fewest_claims(
    board: Board, amount: int, taken: list[int], expected: list[int]
) -> None:
    assert board.take(amount, policy="spread", taken=taken) == expected


@pytest.mark.parametrize(
    ("counts", "amount", "taken", "expected"),
    [
        pytest.param((7, 7), 1, ["0:3"], ["1:0"], id="the other GPU"),
        pytest.param((7, 7), 2, ["0:3"], ["0:0", "1:0"], id="one of each, then the first"),
        pytest.param((2, 2, 2), 4, ["1:1"], ["0:0", "0:1", "1:0", "2:0"], id="round and round"),
        pytest.param((1, 3), 3, [], ["0:0", "1:0", "1:1"], id="until a GPU is used up"),
    ],
)
def test_spread_takes_from_the_gpu_with_the_fewest_claims(
    counts: tuple[int, ...], amount: int, taken: list[str], expected: list[str]
) -> None:
    assert slices(divided(*counts), amount, taken, "spread") == expected


def test_spread_over_gpus_counts_before_spread_over_nodes() -> None:
    host = divided(7, 7, 7, nodes="011")
    assert slices(host, 1, ["0:0", "1:0", "1:1"], "spread") == ["2:0"]
    assert slices(host, 1, ["0:0", "1:0", "2:0"], "spread") == ["0:1"]


# ---- which claims count ---------------------------------------------------------------------------------------------

RIVAL = DGX_H100.gpus[1]


@pytest.mark.parametrize(
    "other",
    [
        Claim("1", 7),
        Claim("1", 7, {"uuid": "GPU-1"}),
        Claim("GPU-1", 7),
        Claim("5", 7, {"uuid": "GPU-1"}),
        Claim("MIG-x", 7, {"uuid": "MIG-x", "parent_uuid": "GPU-1", "parent_token": "1"}),
        Claim("MIG-x", 7, {"parent_token": "1"}),
    ],
)
def test_claim_counts_by_uuid_by_token_and_by_what_it_is_a_slice_of(other: Claim) -> None:
    assert [gpu.index for gpu in DGX_H100.select(DGX_H100.gpus[2:], [other], 1, "spread")] == [4]


@pytest.mark.parametrize(
    "other",
    [
        Claim("1", 7, {"uuid": "GPU-elsewhere"}),
        Claim("GPU-elsewhere", 7),
        Claim("99", 7),
        Claim("MIG-x", 7, {"uuid": "MIG-x", "parent_uuid": "GPU-elsewhere", "parent_token": "1"}),
        Claim("MIG-x", 7),
    ],
)
def test_claim_of_a_device_that_is_not_here_does_not_count(other: Claim) -> None:
    assert [gpu.index for gpu in DGX_H100.select(DGX_H100.gpus[2:], [other], 1, "spread")] == [2]


def test_claim_counts_by_token_where_the_device_has_no_uuid() -> None:
    host = Board([Device(0, numa_node=0), Device(1, numa_node=0), Device(2, numa_node=1)])
    assert host.select(host.gpus[1:], [Claim("0", 7, {"uuid": "GPU-0"})], 1, "spread") == [host.gpus[2]]


# ---- rules that hold for every policy and machine -------------------------------------------------------------------

WORDS = ("NV1", "NV2", "NV12", "PIX", "PXB", "PHB", "NODE", "SYS")


@st.composite
def machines(draw: st.DrawFn, most: int = 8) -> Board:
    """Return a machine: a printed one, one with MIG, or one with any links that need make no sense."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.sampled_from([DGX_1, DGX_A100, A6000, SWITCHES, THREE_AND_THREE, MIXED, ALL_SYS]))
    if kind == 1:
        counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
        return divided(*counts, nodes=draw(st.sampled_from(["", "0011", "0101"])))
    size = draw(st.integers(3, most))
    nodes = draw(st.lists(st.sampled_from([None, 0, 1]), min_size=size, max_size=size)) if kind == 2 else [None] * size
    words = draw(st.sampled_from([(*WORDS, None), ("NV1", "SYS"), ("NV2", "NV1", "SYS"), ("NV12", "NODE", "SYS")]))
    drawn = {pair: draw(st.sampled_from(words)) for pair in combinations(range(size), 2)}
    links = {pair: link for pair, link in drawn.items() if link is not None}
    return Board([Device(index, uuid=f"GPU-{index}", numa_node=node) for index, node in enumerate(nodes)], links)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Board, list[Device], list[Claim], int]:
    """Return a machine, what is free of it in any order, who holds the rest, and an amount that there is."""
    host = draw(machines())
    everything = [device for gpu in host.gpus for device in (gpu.instances or [gpu])]
    order = draw(st.permutations(everything))
    free = order[: draw(st.integers(1, len(order)))]
    claims = [claim(device) for device in everything if device not in free]
    return host, free, claims, draw(st.integers(1, len(free)))


policies = pytest.mark.parametrize("policy", POLICIES)


@policies
@given(requests())
def test_it_takes_as_many_as_wanted_of_the_free_each_once_in_their_order(
    policy: str, request_: tuple[Board, list[Device], list[Claim], int]
) -> None:
    host, free, claims, amount = request_
    places = [free.index(device) for device in host.select(free, claims, amount, policy)]
    assert len(places) == amount
    assert places == sorted(set(places))


@policies
@given(requests(), st.randoms())
def test_order_of_claims_and_claims_of_other_hosts_change_nothing(
    policy: str, request_: tuple[Board, list[Device], list[Claim], int], random: Random
) -> None:
    host, free, claims, amount = request_
    others = [*claims, Claim("0", 7, {"uuid": "GPU-elsewhere"}), Claim("elsewhere", 8)]
    random.shuffle(others)
    assert host.select(free, others, amount, policy) == host.select(free, claims, amount, policy)


@policies
@given(requests())
def test_nothing_for_nothing_and_all_for_all(
    policy: str, request_: tuple[Board, list[Device], list[Claim], int]
) -> None:
    host, free, claims, _ = request_
    assert host.select(free, claims, 0, policy) == []
    assert host.select(free, claims, len(free), policy) == free
    assert host.select(free, claims, len(free) + 1, policy) == free


@given(requests())
def test_connected_is_the_best_of_all_sets(request_: tuple[Board, list[Device], list[Claim], int]) -> None:
    host, free, claims, amount = request_
    chosen = host.select(free, claims, amount, "connected")
    sets = [list(devices) for devices in combinations(free, amount)]
    assert merit(host, free, chosen) == max(merit(host, free, devices) for devices in sets)
    assert merit(host, free, chosen) >= merit(host, free, host.select(free, claims, amount, "first"))


@given(requests())
def test_among_equals_connected_takes_what_leaves_the_best_sets_then_what_comes_first(
    request_: tuple[Board, list[Device], list[Claim], int],
) -> None:
    host, free, claims, amount = request_
    chosen = host.select(free, claims, amount, "connected")
    sets = [list(devices) for devices in combinations(free, amount)]
    best = [devices for devices in sets if merit(host, free, devices) == merit(host, free, chosen)]
    if len(best) > 16:  # no more are told apart
        return
    left = [best_left(host, free, devices) for devices in best]
    assert chosen == best[left.index(max(left))]


def merit(host: Board, free: Sequence[Device], chosen: Sequence[Device]) -> tuple[int, int, int]:
    """Return the worst link, the sum, and less what is cut off from the others."""
    inner = [closeness(host, *pair) for pair in combinations(chosen, 2)]
    cut = [closeness(host, one, other) for one in chosen for other in free if other not in chosen]
    return min(inner, default=0), sum(inner), -sum(cut)


def best_left(host: Board, free: Sequence[Device], chosen: Sequence[Device]) -> list[int]:
    rest = [device for device in free if device not in chosen]
    sizes = [size for size in (8, 4, 2) if size <= len(rest)]
    return [max(merit(host, rest, devices)[0] for devices in combinations(rest, size)) for size in sizes]


def closeness(host: Board, one: Device, other: Device) -> int:
    """Return the place of a link in the list of all, those on one NUMA node behind the same between two."""
    order = [None, "SYS", "NODE", "PHB", "PXB", "PIX", "NV1", "NV2", "NV4", "NV12", "X"]
    weights = [0, 1, 2, 3, 4, 5, 11, 12, 14, 22, 110]
    link = topology.link(host.links, one.index, other.index)
    known = None not in (one.numa_node, other.numa_node)
    if link is None and known:
        link = "NODE" if one.numa_node == other.numa_node else "SYS"
    return 2 * weights[order.index(link)] + (known and one.numa_node == other.numa_node)


@settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.integers(1, 16))
def test_sixteen_gpus_without_any_order_in_their_links_are_no_worse_served_than_in_order(
    random: Random, amount: int
) -> None:
    links = {pair: random.choice(WORDS) for pair in combinations(range(16), 2)}
    host = Board([Device(index) for index in range(16)], links)
    chosen = host.select(host.gpus, [], amount, "connected")
    assert merit(host, host.gpus, chosen) >= merit(host, host.gpus, host.gpus[:amount])


@pytest.mark.parametrize(("size", "amount"), [(32, 16), (64, 7), (64, 60)])
def test_search_that_would_not_end_takes_the_best_until_then(size: int, amount: int) -> None:
    random = Random(1)
    links = {pair: random.choice(WORDS) for pair in combinations(range(size), 2)}
    host = Board([Device(index) for index in range(size)], links)
    chosen = host.take(amount)
    assert len(set(chosen)) == amount
    assert chosen == host.take(amount)


@pytest.mark.parametrize("amount", [1, 3, 512, 700])
def test_thousand_gpus_go_by_their_numa_nodes(amount: int) -> None:
    host = Board([Device(index, numa_node=index % 2) for index in range(1024)])
    chosen = host.select(host.gpus, [], amount, "connected")
    evens = [gpu for gpu in host.gpus if gpu.index % 2 == 0]
    expected = sorted([*evens, *host.gpus[1::2][: amount - 512]] if amount > 512 else evens[:amount], key=index_of)
    assert chosen == expected


def test_where_there_is_too_much_to_compare_connected_packs() -> None:
    host = divided(*[2] * 70)
    everything = [instance for gpu in host.gpus for instance in gpu.instances]
    assert connected.closest(everything, 3, {}) is None
    assert [device.place for device in host.select(everything, [], 3, "connected")] == ["0:0", "0:1", "1:0"]


def index_of(device: Device) -> int:
    return device.index


# ---- foreign use ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "use"),
    [
        (Device(0), None),
        (Device(0, processes=()), None),
        (Device(0, memory_used=0, processes=()), None),
        (Device(0, memory_used=USED - 1, processes=()), None),
        (Device(0, memory_used=USED), "used (128 MiB of its memory)"),
        (Device(0, memory_used=5120, processes=()), "used (5120 MiB of its memory)"),
        (Device(0, processes=(Process(7),)), "used by pid 7"),
        (Device(0, memory_used=0, processes=(Process(7, 512), Process(9))), "used by pid 7 (512 MiB), pid 9"),
        (Device(0, processes=tuple(map(Process, range(1, 5)))), "used by pid 1, pid 2, pid 3, pid 4"),
        (
            Device(0, processes=tuple(map(Process, range(1, 8)))),
            "used by pid 1, pid 2, pid 3, pid 4 and 3 more",
        ),
        (Device(0, uuid="MIG-1", mig_index=0, memory_used=12), None),
        (Device(0, uuid="MIG-1", mig_index=0, memory_used=9000), "used (9000 MiB of its memory)"),
    ],
)
def test_use_by_others_is_what_computes_on_it_or_its_memory(device: Device, use: str | None) -> None:
    assert foreign(device) == use


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings of nvidia-smi are not here")
def test_memory_alone_tells_the_recorded_gpus_at_work_from_the_idle_ones() -> None:
    idle: set[int] = set()
    working: set[int] = set()
    for path in RECORDED.glob("*.xml"):
        for gpu in ET.fromstring(path.read_text(encoding="utf-8")).iter("gpu"):
            used = re.fullmatch(r"(\d+) MiB", gpu.findtext("fb_memory_usage/used") or "")
            load = re.fullmatch(r"(\d+) %", gpu.findtext("utilization/gpu_util") or "")
            if used and load and (int(load[1]) > 50 or gpu.find("processes/process_info") is None):
                (working if int(load[1]) > 50 else idle).add(int(used[1]))
    assert (max(idle), min(working)) == (116, 2028)
    assert all(foreign(Device(0, memory_used=used)) is None for used in idle)
    assert all(foreign(Device(0, memory_used=used)) for used in working)
