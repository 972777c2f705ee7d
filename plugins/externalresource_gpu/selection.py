"""Which of the free devices a request gets. Pure, and called under the lock: it touches nothing, and is quick.

Every policy depends on its arguments alone, and gives its devices in the order in which they were offered.
"""

from externalresource_gpu import topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from externalresource.coordination import Claim
    from externalresource_gpu.device import Device
    from externalresource_gpu.topology import Links

    #: Devices by their place among the free ones.
    _Places = list[int]

#: MiB that a GPU may use without looking used: an idle one has 0 to 70, the smallest CUDA context more than 100.
IDLE_MEMORY = 100
_SHOWN = 4  # processes that are named
_MOST = 64  # GPUs that are compared with each other
_PATIENCE = 20_000  # steps of a search; what was best until then is taken
_TIES = 16  # equally good sets that are told apart by what they leave


def select(
    free: "Sequence[Device]",
    claims: "Sequence[Claim]",
    amount: int,
    *,
    policy: str,
    links: "Links",
    devices: "Sequence[Device]",
) -> "list[Device]":
    """Return `amount` of the free devices, of which none is a slice of another; all, if there are not more.

    `devices` are the host's GPUs with their instances; only claims of those count. Without `links` their NUMA nodes do.
    """
    if amount >= len(free):
        return list(free)
    choice = _POLICIES[policy](_Request(free, claims, amount, links, devices)) if amount > 0 else []
    return [free[place] for place in sorted(choice)]


def foreign(device: "Device") -> str | None:
    """Return what makes a device that nobody claimed look used; None if nothing does, or nothing is known."""
    if device.processes:
        shown = ", ".join(_process(process.pid, process.memory) for process in device.processes[:_SHOWN])
        more = f" and {len(device.processes) - _SHOWN} more" if len(device.processes) > _SHOWN else ""
        return f"used by {shown}{more}"
    if device.memory_used is not None and device.memory_used > IDLE_MEMORY:
        return f"{device.memory_used} MiB of its memory are in use"
    return None


def _process(pid: int, memory: int | None) -> str:
    return f"pid {pid}" if memory is None else f"pid {pid} ({memory} MiB)"


class _Request:
    """What a policy decides on."""

    def __init__(
        self,
        free: "Sequence[Device]",
        claims: "Sequence[Claim]",
        amount: int,
        links: "Links",
        devices: "Sequence[Device]",
    ) -> None:
        self.free, self.amount = free, amount
        self.devices = devices
        self.links = links or topology.inferred(devices)
        #: Claims per GPU, by index, and per NUMA node.
        self.on_gpu, self.on_node = _counts(claims, devices)

    def by_gpu(self) -> "dict[int, _Places]":
        gpus: dict[int, list[int]] = {}
        for place, device in enumerate(self.free):
            gpus.setdefault(device.index, []).append(place)
        return gpus

    def node(self, place: int) -> int | None:
        return self.free[place].numa_node


def _counts(claims: "Iterable[Claim]", devices: "Sequence[Device]") -> "tuple[dict[int, int], dict[int | None, int]]":
    """Return how many claims there are of each GPU, its slices included, and on each NUMA node."""
    uuids = {device.uuid: gpu for gpu in devices for device in (gpu, *gpu.instances) if device.uuid}
    tokens = {device.token: gpu for gpu in devices for device in (gpu, *gpu.instances)}
    on_gpu: dict[int, int] = {}
    on_node: dict[int | None, int] = {}
    for claim in claims:
        gpu = _gpu(claim.uuid, claim.token, uuids, tokens)
        if gpu is None and (claim.parent_uuid or claim.parent_token):  # an instance that is hidden from here
            gpu = _gpu(claim.parent_uuid, claim.parent_token, uuids, tokens)
        if gpu is not None:
            on_gpu[gpu.index] = on_gpu.get(gpu.index, 0) + 1
            on_node[gpu.numa_node] = on_node.get(gpu.numa_node, 0) + 1
    return on_gpu, on_node


def _gpu(
    uuid: str | None, token: str | None, uuids: "Mapping[str, Device]", tokens: "Mapping[str, Device]"
) -> "Device | None":
    """Return the GPU of a name: by UUID where both sides know one, as a container counts from 0."""
    if uuid and uuid in uuids:
        return uuids[uuid]
    gpu = tokens.get(token or "")
    if not uuid:
        return gpu or uuids.get(token or "")
    return gpu if gpu is not None and gpu.uuid is None else None


# ---- first, spread, pack --------------------------------------------------------------------------


def _first(request: _Request) -> "Iterable[int]":
    return range(request.amount)


def _spread(request: _Request) -> "Iterable[int]":
    """Take one by one from the GPU, then the NUMA node, with the fewest claims, those of this request included."""
    import heapq

    on_node = dict(request.on_node)
    nodes: dict[int | None, list[tuple[int, int, _Places]]] = {}
    for index, places in request.by_gpu().items():
        gpu = request.on_gpu.get(index, 0), places[0], places[:0:-1]
        heapq.heappush(nodes.setdefault(request.node(places[0]), []), gpu)
    for _ in range(request.amount):
        node = min(nodes, key=lambda node: (nodes[node][0][0], on_node.get(node, 0), nodes[node][0][1]))
        claims, place, others = heapq.heappop(nodes[node])
        yield place
        on_node[node] = on_node.get(node, 0) + 1
        if others:
            heapq.heappush(nodes[node], (claims + 1, others.pop(), others))
        if not nodes[node]:
            del nodes[node]


def _pack(request: _Request) -> "Iterable[int]":
    """Use up GPUs, then NUMA nodes, that have claims already; of each kind the one of which this leaves least."""
    begun: list[_Places] = []
    nodes: dict[int | None, list[_Places]] = {}
    for index, places in request.by_gpu().items():
        whole = nodes.setdefault(request.node(places[0]), [])
        (begun if request.on_gpu.get(index) else whole).append(places)
    taken = [place for gpu, number in _shares(begun, request.amount) for place in gpu[:number]]
    for claimed in (True, False):
        groups = [gpus for node, gpus in nodes.items() if bool(request.on_node.get(node)) is claimed]
        joined = [[place for gpu in gpus for place in gpu] for gpus in groups]
        for node_places, number in _shares(joined, request.amount - len(taken)):
            gpus = groups[joined.index(node_places)]
            taken += [place for gpu, share in _shares(gpus, number) for place in gpu[:share]]
    return taken


def _shares(groups: "Sequence[_Places]", amount: int) -> "list[tuple[_Places, int]]":
    """Return of which groups to take how many: of the smallest that has enough, else the largest whole, and so on."""
    shares: list[tuple[_Places, int]] = []
    largest = sorted(groups, key=len, reverse=True)
    for position, group in enumerate(largest):
        if amount <= 0:
            break
        if len(group) >= amount:
            enough = [other for other in largest[position:] if len(other) >= amount]
            return [*shares, (min(enough, key=len), amount)]
        shares.append((group, len(group)))
        amount -= len(group)
    return shares


# ---- connected ------------------------------------------------------------------------------------


def _connected(request: _Request) -> "Iterable[int]":
    """Take the set with the best worst link; of those the best linked; of those the one that leaves most to others."""
    graph = _graph(request)
    if graph is None:
        return _pack(request)
    worst = graph.best_worst(request.amount, graph.sizes)
    return _Search(graph, request.amount, worst).best() or _pack(request)


class _Graph:
    """The free devices, those that have the same links to all others as one."""

    def __init__(self, members: "Sequence[_Places]", ranks: "Sequence[Sequence[int]]") -> None:
        self.members = members
        #: Of each two, and of two members of the same.
        self.ranks = ranks
        self.sizes = [len(places) for places in members]
        self.levels = sorted({rank for row in ranks for rank in row}, reverse=True)

    def near(self, rank: int) -> list[int]:
        """Return, as bits, those to which each has a link that is no worse."""
        return [
            sum(1 << other for other, its in enumerate(row) if its >= rank and other != one)
            for one, row in enumerate(self.ranks)
        ]

    def usable(self, rank: int, sizes: "Sequence[int]") -> list[int]:
        """Return how many members of each have links that are no worse among themselves."""
        return [size if self.ranks[one][one] >= rank else min(size, 1) for one, size in enumerate(sizes)]

    def best_worst(self, amount: int, sizes: "Sequence[int]") -> int:
        """Return the rank of the worst link in the set of `amount` in which that is best."""
        for rank in self.levels:
            if _Clique(self.near(rank), self.usable(rank, sizes)).exists((1 << len(sizes)) - 1, amount):
                return rank
        return 0


class _Clique:
    """Looks for devices that are all near to each other."""

    def __init__(self, near: "Sequence[int]", usable: "Sequence[int]") -> None:
        self._near, self._usable = near, usable
        self._steps = 0

    def exists(self, candidates: int, amount: int) -> bool:
        """Return whether `amount` of the candidates are; False, too, if it takes too long to tell."""
        left = sum(self._usable[one] for one in _bits(candidates))
        for one in _bits(candidates):
            if amount <= self._usable[one]:
                return True
            if left < amount or self._steps > _PATIENCE:
                return False
            self._steps += 1
            candidates ^= 1 << one
            if self.exists(candidates & self._near[one], amount - self._usable[one]):
                return True
            left -= self._usable[one]
        return False


class _Search:
    """Looks through the sets with no link worse than `worst`."""

    def __init__(self, graph: _Graph, amount: int, worst: int) -> None:
        self._graph, self._amount = graph, amount
        self._near, self._usable = graph.near(worst), graph.usable(worst, graph.sizes)
        degrees = [
            sum(rank * size for rank, size in zip(row, graph.sizes, strict=True)) - row[one]
            for one, row in enumerate(graph.ranks)
        ]
        #: One rank of the sum outweighs all that is cut off from the others.
        self._scale = amount * max(degrees) + 1
        self._costs = degrees
        self._highest = max(graph.levels) * self._scale
        self._steps = 0
        self._best = 0
        self._found: list[dict[int, int]] = []

    def best(self) -> "_Places":
        start = [-cost for cost in self._costs]
        self._extend({}, (1 << len(start)) - 1, self._amount, 0, start)
        if not self._found:
            return []
        return min((self._left(chosen), self._places(chosen)) for chosen in self._found)[1]

    def _extend(self, chosen: dict[int, int], candidates: int, left: int, value: int, gains: list[int]) -> None:
        """Try each way to go on; `gains` has what one more of each would add to the value."""
        if left == 0:
            self._note(chosen, value)
            return
        for one in _bits(candidates):
            if self._hopeless(candidates, left, value, gains):
                return
            candidates ^= 1 << one
            row = self._graph.ranks[one]
            for number in range(min(self._usable[one], left), 0, -1):
                self._steps += 1
                inner = number * (number - 1) // 2 * row[one] * self._scale
                step = number * self._scale
                self._extend(
                    {**chosen, one: number},
                    candidates & self._near[one],
                    left - number,
                    value + number * gains[one] + inner,
                    [gain + step * rank for gain, rank in zip(gains, row, strict=True)],
                )

    def _hopeless(self, candidates: int, left: int, value: int, gains: list[int]) -> bool:
        """Return whether no way to go on is as good as what was found."""
        best = sorted((gains[one] for one in _bits(candidates) for _ in range(self._usable[one])), reverse=True)[:left]
        if len(best) < left:
            return True
        if not self._found:
            return False
        bound = value + sum(best) + left * (left - 1) // 2 * self._highest
        full = len(self._found) >= _TIES or self._steps > _PATIENCE
        return bound < self._best or (full and bound == self._best) or self._steps > 2 * _PATIENCE

    def _note(self, chosen: dict[int, int], value: int) -> None:
        if not self._found or value > self._best:
            self._best, self._found = value, [chosen]
        elif value == self._best and len(self._found) < _TIES:
            self._found.append(chosen)

    def _left(self, chosen: dict[int, int]) -> list[int]:
        """Return how good the best sets of the others are, by half of all, quarter and so on; the least is best."""
        if len(self._found) == 1:
            return []
        sizes = [size - chosen.get(one, 0) for one, size in enumerate(self._graph.sizes)]
        powers = [1 << power for power in range(sum(sizes).bit_length() - 1, 0, -1)]
        return [-self._graph.best_worst(amount, sizes) for amount in powers]

    def _places(self, chosen: dict[int, int]) -> "_Places":
        return sorted(place for one, number in chosen.items() for place in self._graph.members[one][:number])


def _graph(request: _Request) -> _Graph | None:
    """Return the graph; None if there are too many GPUs and NUMA nodes to compare, which no host has."""
    links = request.links
    units = list(request.by_gpu().values())
    if len(units) > _MOST:
        links, units = topology.inferred(request.devices), _by_node(request, units)
    if len(units) > _MOST:
        return None
    indices = [request.free[places[0]].index for places in units]
    rows = [bytes(topology.rank(topology.link(links, one, other)) for other in indices) for one in indices]
    alike: list[list[int]] = []
    for unit, places in enumerate(units):
        group = next((group for group in alike if len(places) == 1 and _twins(rows, units, group[0], unit)), None)
        if group is None:
            alike.append([unit])
        else:
            group.append(unit)
    members = [[place for unit in group for place in units[unit]] for group in alike]
    ranks = [[rows[group[0]][other[0]] for other in alike] for group in alike]
    for one, places in enumerate(members):
        pair = [request.free[place].index for place in (places[0], places[-1])]
        ranks[one][one] = topology.rank(topology.link(links, *pair))
    return _Graph(members, ranks)


def _by_node(request: _Request, units: "Iterable[_Places]") -> "list[_Places]":
    """Return the whole GPUs of each NUMA node as one."""
    groups: dict[object, list[int]] = {}
    for places in units:
        key = ("node", request.node(places[0])) if len(places) == 1 else places[0]
        groups.setdefault(key, []).extend(places)
    return list(groups.values())


def _twins(rows: "Sequence[bytes]", units: "Sequence[_Places]", one: int, other: int) -> bool:
    """Return whether two GPUs have the same links to all others."""
    if len(units[one]) > 1:
        return False
    its, others = bytearray(rows[one]), bytearray(rows[other])
    its[one] = its[other] = others[one] = others[other] = 0
    return its == others


def _bits(number: int) -> "Iterable[int]":
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


_POLICIES: "Mapping[str, Callable[[_Request], Iterable[int]]]" = {
    "first": _first,
    "connected": _connected,
    "spread": _spread,
    "pack": _pack,
}
POLICIES = tuple(_POLICIES)
