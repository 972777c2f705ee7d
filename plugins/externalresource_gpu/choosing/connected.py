"""The best-connected set of devices. Pure, and quick: devices with the same links are one.

It is exact for up to 16 GPUs however they are connected (40 ms at most; 1 ms on machines that are built), and for more
where there is an order in their links.

A set is judged by its worst link; then by the sum of its links; then by what it cuts off from the devices that stay,
and by the best sets among these; then by the order in which the devices were offered.
"""

from externalresource_gpu.choosing import topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device

    #: Devices by their place among those that were offered.
    Places = list[int]

_MOST = 64  # GPUs that are compared with each other; no host has more
_PATIENCE = 4_000  # steps of a search, 10 us each; of what takes longer the best until then is taken
_TIES = 16  # equally good sets that are told apart by what they leave


def closest(devices: "Sequence[Device]", amount: int, links: "Links") -> "Places | None":
    """Return the places of the best-connected `amount` of the devices, ascending; all, if there are not more.

    Returns None if there are too many GPUs to tell, on more than 64 NUMA nodes or with more than 64 of them in slices.
    """
    if amount >= len(devices):
        return list(range(len(devices)))
    graph = _graph(devices, links)
    if graph is None:
        return None
    return _Search(graph, amount, graph.best_worst(amount, graph.sizes)).best()


class _Graph:
    """The devices; those that are equally close to all others are one node of several members."""

    def __init__(self, members: "Sequence[Places]", ranks: "Sequence[Sequence[int]]") -> None:
        self.members = members
        #: How close two nodes are; of a node and itself: two of its members.
        self.ranks = ranks
        self.sizes = [len(places) for places in members]
        self.levels = sorted({rank for row in ranks for rank in row}, reverse=True)

    def near(self, rank: int) -> list[int]:
        """Return for each node, as bits, the others that are no less close."""
        return [
            sum(1 << other for other, its in enumerate(row) if its >= rank and other != one)
            for one, row in enumerate(self.ranks)
        ]

    def usable(self, rank: int, sizes: "Sequence[int]") -> list[int]:
        """Return how many members of each node are no less close to each other."""
        return [size if self.ranks[one][one] >= rank else min(size, 1) for one, size in enumerate(sizes)]

    def best_worst(self, amount: int, sizes: "Sequence[int]") -> int:
        """Return how close the two least close are, in the set of `amount` in which that is best."""
        for rank in self.levels:
            if _Clique(self.near(rank), self.usable(rank, sizes)).exists((1 << len(sizes)) - 1, amount):
                return rank
        return 0

    def best_left(self, taken: dict[int, int]) -> list[int]:
        """Return the same for the largest power of two that stays if these are taken, its half, and so on."""
        sizes = [size - taken.get(node, 0) for node, size in enumerate(self.sizes)]
        return [self.best_worst(1 << power, sizes) for power in range(sum(sizes).bit_length() - 1, 0, -1)]


class _Clique:
    """Looks for members that are all near to each other."""

    def __init__(self, near: "Sequence[int]", usable: "Sequence[int]") -> None:
        self._near, self._usable = near, usable
        self._steps = 0

    def exists(self, candidates: int, amount: int) -> bool:
        """Return whether `amount` of the candidates are; False, too, if it takes too long to tell."""
        left = sum(self._usable[node] for node in _bits(candidates))
        for node in _bits(candidates):
            if amount <= self._usable[node]:
                return True
            if left < amount or self._steps > _PATIENCE:
                return False
            self._steps += 1
            candidates ^= 1 << node
            if self.exists(candidates & self._near[node], amount - self._usable[node]):
                return True
            left -= self._usable[node]
        return False


class _Search:
    """Looks through the sets in which no two are less close than `worst`."""

    def __init__(self, graph: _Graph, amount: int, worst: int) -> None:
        self._graph, self._amount = graph, amount
        self._near, self._usable = graph.near(worst), graph.usable(worst, graph.sizes)
        others = [_others(row, node, graph.sizes) for node, row in enumerate(graph.ranks)]
        self._cut = [sum(ranks) for ranks in others]
        # Even, and so large that what is cut off never outweighs a link of the set.
        self._scale = 2 * (amount * max(self._cut) + 1)
        #: What so many further members would add to one of a node, at best: half of each link is the other's.
        self._hope = [[sum(ranks[:more]) * self._scale // 2 for more in range(amount)] for ranks in others]
        self._steps = 0
        self._best = 0
        self._found: list[dict[int, int]] = []

    def best(self) -> "Places | None":
        self._extend({}, (1 << len(self._cut)) - 1, self._amount, 0, [-cut for cut in self._cut])
        if len(self._found) > 1:
            left = [self._graph.best_left(taken) for taken in self._found]
            self._found = [taken for taken, its in zip(self._found, left, strict=True) if its == max(left)]
        return min(map(self._places, self._found), default=None)

    def _extend(self, taken: dict[int, int], candidates: int, amount: int, value: int, gains: list[int]) -> None:
        """Try each way to take `amount` more; `gains` is what one more of each node adds to the value."""
        if amount == 0:
            self._note(taken, value)
            return
        for node in _bits(candidates):
            if self._is_hopeless(candidates, amount, value, gains):
                return
            candidates ^= 1 << node
            row = self._graph.ranks[node]
            for number in range(min(self._usable[node], amount), 0, -1):
                self._steps += 1
                step = number * self._scale
                self._extend(
                    {**taken, node: number},
                    candidates & self._near[node],
                    amount - number,
                    value + number * gains[node] + (number - 1) * row[node] * step // 2,
                    [gain + step * rank for gain, rank in zip(gains, row, strict=True)],
                )

    def _is_hopeless(self, candidates: int, amount: int, value: int, gains: list[int]) -> bool:
        """Return whether no way to go on is as good as what was found."""
        hopes: list[int] = []
        for node in _bits(candidates):
            hopes += [gains[node] + self._hope[node][amount - 1]] * min(self._usable[node], amount)
        if len(hopes) < amount:
            return True
        if not self._found:
            return False
        hopes.sort(reverse=True)
        bound = value + sum(hopes[:amount])
        full = len(self._found) == _TIES or self._steps > _PATIENCE
        return bound < self._best or (full and bound == self._best) or self._steps > 2 * _PATIENCE

    def _note(self, taken: dict[int, int], value: int) -> None:
        if not self._found or value > self._best:
            self._best, self._found = value, [taken]
        elif value == self._best and len(self._found) < _TIES:
            self._found.append(taken)

    def _places(self, taken: dict[int, int]) -> "Places":
        return sorted(place for node, number in taken.items() for place in self._graph.members[node][:number])


def _others(row: "Sequence[int]", node: int, sizes: "Sequence[int]") -> list[int]:
    """Return how close a member of a node is to each other member of any node, the closest first."""
    others = [rank for other, rank in enumerate(row) for _ in range(sizes[other] - (other == node))]
    return sorted(others, reverse=True)


def _graph(devices: "Sequence[Device]", links: "Links") -> _Graph | None:
    gpus: dict[int, list[int]] = {}
    for place, device in enumerate(devices):
        gpus.setdefault(device.index, []).append(place)
    units = list(gpus.values())
    if len(units) > _MOST:
        links, units = {}, _by_node(units, devices)
    if len(units) > _MOST:
        return None
    firsts = [devices[places[0]] for places in units]
    rows = [bytes(topology.closeness(links, one, other) for other in firsts) for one in firsts]
    nodes: list[list[int]] = []
    for unit, places in enumerate(units):
        alike = (node for node in nodes if len(places) == len(units[node[0]]) == 1 and _alike(rows, node[0], unit))
        node = next(alike, None)
        if node is None:
            nodes.append([unit])
        else:
            node.append(unit)
    members = [[place for unit in node for place in units[unit]] for node in nodes]
    ranks = [[rows[node[0]][other[0]] for other in nodes] for node in nodes]
    for row, places in enumerate(members):
        ranks[row][row] = topology.closeness(links, devices[places[0]], devices[places[-1]])
    return _Graph(members, ranks)


def _by_node(units: "Iterable[Places]", devices: "Sequence[Device]") -> "list[Places]":
    """Return the whole GPUs of each NUMA node as one; without their links they are equally close."""
    nodes: dict[object, list[int]] = {}
    for places in units:
        whole = len(places) == 1
        nodes.setdefault(("node", devices[places[0]].numa_node) if whole else places[0], []).extend(places)
    return list(nodes.values())


def _alike(rows: "Sequence[bytes]", one: int, other: int) -> bool:
    """Return whether two GPUs are equally close to all others."""
    its, others = bytearray(rows[one]), bytearray(rows[other])
    its[one] = its[other] = others[one] = others[other] = 0
    return its == others


def _bits(number: int) -> "Iterator[int]":
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
