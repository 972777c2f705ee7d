"""Which of the free devices a request gets. Pure, and called under the lock: it touches nothing, and is quick.

Every policy depends on its arguments alone, and gives its devices in the order in which they were offered.
"""

from externalresource.api import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from externalresource.coordination import Claim
    from externalresource_gpu.choosing.connected import Places
    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device

#: MiB in use from which on a device looks used. Idle ones were recorded with up to 116; most CUDA contexts alone take
#: more.
USED = 128
_SHOWN = 4  # processes that are named


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
    choice = _POLICIES[policy](_Request(free, amount, links, claims, devices)) if amount > 0 else []
    return [free[place] for place in sorted(choice)]


def foreign(device: "Device") -> str | None:
    """Return how somebody uses a device, to follow "is": `used by pid 7 (512 MiB)`; None if nothing is known of it.

    For devices that nobody claimed. Of a MIG instance only its memory tells: what runs on its GPU may be elsewhere.
    """
    if device.processes:
        shown = ", ".join(_process(process.pid, process.memory) for process in device.processes[:_SHOWN])
        more = f" and {len(device.processes) - _SHOWN} more" if len(device.processes) > _SHOWN else ""
        return f"used by {shown}{more}"
    if device.memory_used is not None and device.memory_used >= USED:
        return f"used ({device.memory_used} MiB of its memory)"
    return None


def _process(pid: int, memory: int | None) -> str:
    return f"pid {pid}" if memory is None else f"pid {pid} ({memory} MiB)"


@record
class _Request:
    """What a policy decides on."""

    free: "Sequence[Device]"
    amount: int
    links: "Links"
    claims: "Sequence[Claim]"
    devices: "Sequence[Device]"

    def node(self, place: int) -> int | None:
        return self.free[place].numa_node


def _counts(request: _Request) -> "tuple[dict[int, int], dict[int | None, int]]":
    """Return how many claims there are of each GPU, by index and with its slices, and on each NUMA node."""
    uuids = {device.uuid: gpu for gpu in request.devices for device in (gpu, *gpu.instances) if device.uuid}
    tokens = {device.token: gpu for gpu in request.devices for device in (gpu, *gpu.instances)}
    on_gpu: dict[int, int] = {}
    on_node: dict[int | None, int] = {}
    for claim in request.claims:
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


def _first(request: _Request) -> "Iterable[int]":
    return range(request.amount)


def _spread(request: _Request) -> "Iterable[int]":
    """Take one by one from the GPU, then the NUMA node, with the fewest claims, those of this request included."""
    import heapq

    from externalresource_gpu.choosing import topology

    on_gpu, on_node = _counts(request)
    nodes: dict[int | None, list[tuple[int, int, Places]]] = {}
    for index, places in topology.by_gpu(request.free).items():
        gpu = on_gpu.get(index, 0), places[0], places[:0:-1]
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
    from externalresource_gpu.choosing import topology

    on_gpu, on_node = _counts(request)
    begun: list[Places] = []
    nodes: dict[int | None, Places] = {}
    for index, places in topology.by_gpu(request.free).items():
        if on_gpu.get(index):
            begun.append(places)
        else:
            nodes.setdefault(request.node(places[0]), []).extend(places)
    taken = [place for gpu, number in _shares(begun, request.amount) for place in gpu[:number]]
    for claimed in (True, False):
        groups = [sorted(places) for node, places in nodes.items() if bool(on_node.get(node)) is claimed]
        for places, number in _shares(groups, request.amount - len(taken)):
            taken += _part(places, number, request)
    return taken


def _part(places: "Places", amount: int, request: _Request) -> "Places":
    """Return the best-connected of the places, which leaves the others well connected."""
    from externalresource_gpu.choosing import connected

    found = connected.closest([request.free[place] for place in places], amount, request.links)
    return places[:amount] if found is None else [places[chosen] for chosen in found]


def _shares(groups: "Sequence[Places]", amount: int) -> "list[tuple[Places, int]]":
    """Return of which groups to take how many: of the smallest that has enough, else the largest whole, and so on."""
    shares: list[tuple[Places, int]] = []
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


def _connected(request: _Request) -> "Iterable[int]":
    from externalresource_gpu.choosing import connected

    found = connected.closest(request.free, request.amount, request.links)
    return _pack(request) if found is None else found


_POLICIES: "Mapping[str, Callable[[_Request], Iterable[int]]]" = {
    "first": _first,
    "connected": _connected,
    "spread": _spread,
    "pack": _pack,
}
POLICIES = tuple(_POLICIES)
