"""What the best-connected set is, on machines that were built, and on any others."""

import time
from collections.abc import Sequence
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from externalresource.coordination import Claim
from externalresource.records import replace
from externalresource_gpu import backends
from externalresource_gpu.choosing import connected, topology
from externalresource_gpu.device import Device
from tests.support.boards import (
    A6000,
    ALL_SYS,
    BRIDGED_ACROSS,
    DGX_1,
    DGX_1_PASCAL,
    DGX_2,
    DGX_A100,
    DGX_H100,
    H100_QUAD,
    MIXED,
    SWITCHES,
    THREE_AND_THREE,
    WORDS,
    Board,
    board,
    divided,
    requests,
)


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


class Judge:
    """The rule of the docstring, applied to all sets one after the other."""

    def __init__(self, host: Board, devices: Sequence[Device]) -> None:
        self._near = {
            tuple(sorted((one.place, other.place))): closeness(host, one, other)
            for one, other in combinations(devices, 2)
        }

    def merit(self, free: Sequence[Device], chosen: Sequence[Device]) -> tuple[int, int, int]:
        """Return the worst link, the sum, and less what is cut off from the others."""
        places = [device.place for device in chosen]
        inner = [self._near[pair] for pair in combinations(sorted(places), 2)]
        others = [device.place for device in free if device.place not in places]
        cut = sum(self._near[min(one, other), max(one, other)] for one in places for other in others)
        return min(inner, default=0), sum(inner), -cut

    def left(self, free: Sequence[Device], chosen: Sequence[Device]) -> list[int]:
        rest = [device for device in free if device not in chosen]
        sizes = [size for size in (8, 4, 2) if size <= len(rest)]
        return [max(self.merit(rest, devices)[0] for devices in combinations(rest, size)) for size in sizes]

    def best(self, free: Sequence[Device], amount: int) -> list[list[Device]]:
        """Return the sets that are best by their links, in the order in which they are offered."""
        merits = [(self.merit(free, devices), list(devices)) for devices in combinations(free, amount)]
        most = max(merit for merit, _ in merits)
        return [devices for merit, devices in merits if merit == most]

    def choice(self, free: Sequence[Device], amount: int) -> list[Device]:
        best = self.best(free, amount)
        return max(best, key=lambda devices: self.left(free, devices)) if len(best) > 1 else best[0]


def closeness(host: Board, one: Device, other: Device) -> int:
    """Return the place of a link in the list of all, those on one NUMA node behind the same between two."""
    order = [None, "SYS", "NODE", "PHB", "PXB", "PIX", "NV1", "NV2", "NV4", "NV12", "NV18", "X"]
    weights = [0, 1, 2, 3, 4, 5, 11, 12, 14, 22, 28, 110]
    link = topology.link(host.links, one.index, other.index)
    known = None not in (one.numa_node, other.numa_node)
    if link is None and known:
        link = "NODE" if one.numa_node == other.numa_node else "SYS"
    return 2 * weights[order.index(link)] + (known and one.numa_node == other.numa_node)


@pytest.mark.parametrize("machine", ["dgx-1", "dgx-a100", "dgx-h100", "mixed"])
def test_whatever_is_free_of_a_machine_and_is_wanted_the_best_of_all_sets_is_chosen(machine: str) -> None:
    backend = backends.create("simulated", machine, topology=True)
    gpus = backend.devices(time.monotonic() + 60)
    host = Board(gpus, dict(backend.links(time.monotonic() + 60)))
    everything = [device for gpu in gpus for device in (gpu.instances or [gpu])]
    judge = Judge(host, everything)
    for size in range(1, len(everything) + 1):
        for free in combinations(everything, size):
            for amount in range(1, size):
                assert host.select(free, [], amount, "connected") == judge.choice(free, amount)


@given(requests())
def test_connected_is_the_best_of_all_sets(request_: tuple[Board, list[Device], list[Claim], int]) -> None:
    host, free, claims, amount = request_
    judge = Judge(host, free)
    chosen = host.select(free, claims, amount, "connected")
    best = judge.best(free, amount)
    assert chosen in best
    if len(best) <= 16:  # no more are told apart by what they leave
        assert chosen == judge.choice(free, amount)


@settings(max_examples=20)
@given(st.randoms(use_true_random=False), st.integers(1, 16))
def test_sixteen_gpus_without_any_order_in_their_links_are_no_worse_served_than_in_order(
    random: Random, amount: int
) -> None:
    links = {pair: random.choice(WORDS) for pair in combinations(range(16), 2)}
    host = Board([Device(index) for index in range(16)], links)
    chosen = host.select(host.gpus, [], amount, "connected")
    judge = Judge(host, host.gpus)
    assert judge.merit(host.gpus, chosen) >= judge.merit(host.gpus, host.gpus[:amount])


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
