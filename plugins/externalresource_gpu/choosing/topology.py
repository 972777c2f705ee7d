"""How the GPUs of a host are connected. Pure: it touches no process and no file."""

from collections.abc import Sequence

from externalresource_gpu.device import Device

#: The link of two GPUs, the smaller index first, in the words of `nvidia-smi topo -m`: `NV12` is as many NVLinks, then
#: come PIX (one PCIe bridge), PXB (several), PHB (a host bridge), NODE (one NUMA node) and SYS (between NUMA nodes).
#: A pair that is missing is unknown.
Links = dict[tuple[int, int], str]

SELF, UNKNOWN = "X", "?"
# SOC is what drivers before 384 called SYS; PSB is the bridge on a board with two GPUs.
_RANKS = {"SYS": 1, "SOC": 1, "NODE": 2, "PHB": 3, "PXB": 4, "PIX": 5, "PSB": 6}
_NVLINK = 10  # one NVLink is above every way over PCIe
_MOST_NVLINKS, _DIGITS = 99, 4
#: The rank of two slices of one GPU: no link is better.
SAME_GPU = _NVLINK + _MOST_NVLINKS + 1


def rank(link: str | None) -> int:
    """Return how good a link is: the more the better, 0 if it is unknown, at most SAME_GPU for `X`."""
    if link is None:
        return 0
    number = link[2:]
    if link.startswith("NV") and number.isascii() and number.isdigit() and len(number) <= _DIGITS:
        return _NVLINK + min(int(number), _MOST_NVLINKS) if int(number) else 0
    return SAME_GPU if link == SELF else _RANKS.get(link, 0)


def closeness(links: Links, one: Device, other: Device) -> int:
    """Return how close two devices are: by their link, or by their NUMA nodes where that is unknown.

    Of two pairs with the same link the one on one NUMA node is closer: behind NVLink the matrix does not show PCIe,
    and some machines have SYS everywhere.
    """
    known = link(links, one.index, other.index) or _by_node(one.numa_node, other.numa_node)
    return 2 * rank(known) + (one.numa_node is not None and one.numa_node == other.numa_node)


def by_gpu(devices: Sequence[Device]) -> dict[int, list[int]]:
    """Return the places of the devices in their order, by the index of the GPU that they are, or are slices of."""
    gpus: dict[int, list[int]] = {}
    for place, device in enumerate(devices):
        gpus.setdefault(device.index, []).append(place)
    return gpus


def link(links: Links, one: int, other: int) -> str | None:
    """Return the link of two GPUs by index, whichever is first: `X` for a GPU and itself, None if it is unknown."""
    if one == other:
        return SELF
    return links.get((one, other) if one < other else (other, one))


def matrix(links: Links, devices: Sequence[Device]) -> list[list[str]]:
    """Return the links of each device to each, in their order, as `nvidia-smi topo -m`: `X` for itself, `?` unknown."""
    return [[link(links, one.index, other.index) or UNKNOWN for other in devices] for one in devices]


def _by_node(one: int | None, other: int | None) -> str | None:
    if one is None or other is None:
        return None
    return "NODE" if one == other else "SYS"
