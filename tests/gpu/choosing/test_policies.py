"""What each policy takes, but for `connected`, which has a file of its own."""

from random import Random

import pytest
from hypothesis import given, strategies as st

from externalresource.coordination import Claim
from externalresource_gpu.choosing.policies import POLICIES
from externalresource_gpu.device import Device
from tests.support.boards import (
    DGX_A100,
    DGX_H100,
    SWITCHES,
    Board,
    claim,
    divided,
    requests,
)
from tests.support.devices import claim_of

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
        claim_of("1", 7),
        claim_of("1", 7, {"uuid": "GPU-1"}),
        claim_of("GPU-1", 7),
        claim_of("5", 7, {"uuid": "GPU-1"}),
        claim_of("MIG-x", 7, {"uuid": "MIG-x", "parent_uuid": "GPU-1", "parent_token": "1"}),
        claim_of("MIG-x", 7, {"parent_token": "1"}),
    ],
)
def test_claim_counts_by_uuid_by_token_and_by_what_it_is_a_slice_of(other: Claim) -> None:
    assert [gpu.index for gpu in DGX_H100.select(DGX_H100.gpus[2:], [other], 1, "spread")] == [4]


@pytest.mark.parametrize(
    "other",
    [
        claim_of("1", 7, {"uuid": "GPU-elsewhere"}),
        claim_of("GPU-elsewhere", 7),
        claim_of("99", 7),
        claim_of("MIG-x", 7, {"uuid": "MIG-x", "parent_uuid": "GPU-elsewhere", "parent_token": "1"}),
        claim_of("MIG-x", 7),
    ],
)
def test_claim_of_a_device_that_is_not_here_does_not_count(other: Claim) -> None:
    assert [gpu.index for gpu in DGX_H100.select(DGX_H100.gpus[2:], [other], 1, "spread")] == [2]


def test_claim_counts_by_token_where_the_device_has_no_uuid() -> None:
    host = Board([Device(0, numa_node=0), Device(1, numa_node=0), Device(2, numa_node=1)])
    assert host.select(host.gpus[1:], [claim_of("0", 7, {"uuid": "GPU-0"})], 1, "spread") == [host.gpus[2]]


# ---- rules that hold for every policy and machine -------------------------------------------------------------------

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
    others = [*claims, claim_of("0", 7, {"uuid": "GPU-elsewhere"}), claim_of("elsewhere", 8)]
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
