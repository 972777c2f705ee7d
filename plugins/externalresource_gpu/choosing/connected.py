"""The best-connected set of devices. Pure: all sets are compared, and devices with the same links are one.

It is exact for up to 16 GPUs however they are connected, and for more where there is an order in their links.

A set is judged by its worst link; then by the sum of its links; then by what it cuts off from the devices that stay,
and by the best sets among these; then by the order in which the devices were offered.
"""

from collections.abc import Iterable, Iterator, Sequence

from externalresource_gpu.choosing import topology
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device

#: Devices by their place among those that were offered.
Places = list[int]
#: How many members of which nodes.
Members = tuple[tuple[int, int], ...]

_MOST = 64  # GPUs that are compared with each other; no host has more
_PATIENCE = 25_000  # steps, 3 us each: enough for all sets of 16. Of what takes longer the best until then is taken
_TIES = 16  # equally good sets that are told apart by what they leave


def closest(devices: Sequence[Device], amount: int, links: Links) -> Places | None:
    """Return the places of the best-connected `amount` of the devices, ascending; all, if there are not more.

    Returns None if there are too many GPUs to tell, on more than 64 NUMA nodes or with more than 64 of them in slices.
    """
    if amount >= len(devices):
        return list(range(len(devices)))
    graph = _graph(devices, links)
    return None if graph is None else graph.best(amount)


class _Graph:
    """The devices; those that are equally close to all others are one node of several members, the largest first."""

    def __init__(self, members: Sequence[Places], ranks: Sequence[Sequence[int]]) -> None:
        self._members = members
        #: How close two nodes are; of a node and itself: two of its members.
        self._ranks = ranks
        self._sizes = [len(places) for places in members]
        #: How close a member of each node is to all other devices, in sum.
        self._outer = [sum(map(int.__mul__, self._sizes, row)) - row[node] for node, row in enumerate(ranks)]
        #: So large that what is cut off never outweighs a link of the set.
        self._scale = sum(map(int.__mul__, self._sizes, self._outer)) + 1
        self._levels = sorted({rank for row in ranks for rank in row}, reverse=True)

    def best(self, amount: int) -> Places:
        worst = self._worst(amount, self._sizes)
        sets = list(self._sets(worst, amount, self._sizes))
        most = max(value for value, _ in sets)
        ties = sorted((self._places(chosen), chosen) for value, chosen in sets if value == most)[:_TIES]
        return max(ties, key=lambda tie: self._left(tie[1]))[0] if len(ties) > 1 else ties[0][0]

    def _worst(self, amount: int, sizes: Sequence[int]) -> int:
        """Return how close the two least close are, in the set of `amount` in which that is best."""
        return next((rank for rank in self._levels if any(self._sets(rank, amount, sizes))), 0)

    def _sets(self, rank: int, amount: int, sizes: Sequence[int]) -> Iterator[tuple[int, Members]]:
        """Yield the sets of `amount` in which no two are less close, each with its value."""
        usable = [size if self._ranks[node][node] >= rank else min(size, 1) for node, size in enumerate(sizes)]
        nodes = [node for node, size in enumerate(sizes) if size]
        steps = iter(range(_PATIENCE))

        def extended(
            value: int, chosen: Members, amount: int, nodes: list[int], gains: Sequence[int]
        ) -> Iterator[tuple[int, Members]]:
            """`gains` is what one more member of each node adds to the value."""
            for place, node in enumerate(nodes):
                row = self._ranks[node]
                near = [other for other in nodes[place + 1 :] if row[other] >= rank] if amount > 1 else []
                least = max(amount - sum([usable[other] for other in near]), 1)
                for number in range(min(usable[node], amount), least - 1, -1):
                    if next(steps, None) is None:
                        return
                    taken = *chosen, (node, number)
                    worth = value + number * gains[node] + number * (number - 1) // 2 * row[node] * self._scale
                    if number == amount:
                        yield worth, taken
                    else:
                        step = number * self._scale
                        more = [gain + step * link for gain, link in zip(gains, row, strict=True)]
                        yield from extended(worth, taken, amount - number, near, more)

        return extended(0, (), amount, nodes, [-outer for outer in self._outer])

    def _left(self, chosen: Members) -> list[int]:
        """Return the worst link of the best set that stays, of the largest power of two, its half, and so on."""
        sizes = list(self._sizes)
        for node, number in chosen:
            sizes[node] -= number
        return [self._worst(1 << power, sizes) for power in range(sum(sizes).bit_length() - 1, 0, -1)]

    def _places(self, chosen: Members) -> Places:
        return sorted(place for node, number in chosen for place in self._members[node][:number])


def _graph(devices: Sequence[Device], links: Links) -> _Graph | None:
    units = list(topology.by_gpu(devices).values())
    if len(units) > _MOST:
        links, units = {}, _by_node(units, devices)
    if len(units) > _MOST:
        return None
    firsts = [devices[places[0]] for places in units]
    rows = [bytearray(len(units)) for _ in units]
    for one, row in enumerate(rows):
        for other in range(one):
            row[other] = rows[other][one] = topology.closeness(links, firsts[one], firsts[other])
    nodes: list[list[int]] = []
    for unit, places in enumerate(units):
        alike = (node for node in nodes if len(places) == len(units[node[0]]) == 1 and _alike(rows, node[0], unit))
        node = next(alike, None)
        if node is None:
            nodes.append([unit])
        else:
            node.append(unit)
    nodes.sort(key=lambda node: -sum(len(units[unit]) for unit in node))
    members = [[place for unit in node for place in units[unit]] for node in nodes]
    ranks = [[rows[node[0]][other[0]] for other in nodes] for node in nodes]
    for number, places in enumerate(members):
        ranks[number][number] = topology.closeness(links, devices[places[0]], devices[places[-1]])
    return _Graph(members, ranks)


def _by_node(units: Iterable[Places], devices: Sequence[Device]) -> list[Places]:
    """Return the whole GPUs of each NUMA node as one; without their links they are equally close."""
    nodes: dict[object, list[int]] = {}
    for places in units:
        whole = len(places) == 1
        nodes.setdefault(("node", devices[places[0]].numa_node) if whole else places[0], []).extend(places)
    return list(nodes.values())


def _alike(rows: Sequence[bytearray], one: int, other: int) -> bool:
    """Return whether two GPUs are equally close to all others."""
    its, others = rows[one].copy(), rows[other].copy()
    its[other] = others[one] = 0
    return its == others
