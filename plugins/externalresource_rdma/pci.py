"""How far apart two functions are in the tree of PCI devices, in the words of `nvidia-smi topo -m`."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from externalresource_rdma import sysfs

#: From near to far.
DISTANCES = ("PIX", "PXB", "PHB", "NODE", "SYS")

_ROOT = re.compile(r"pci[0-9a-f]{4,}:[0-9a-f]{2}")
_GPU = re.compile(r"0x(0300|0302|1200)[0-9a-f]{2}")  # VGA, 3D, processing accelerator
_CONSOLES = ("0x1a03", "0x102b")  # the VGA of a server's management controller (ASPEED, Matrox) is no GPU


@dataclass(frozen=True, slots=True)
class Function:
    """A PCI function: an adapter, a GPU."""

    bus_id: str
    #: The host bridge, and then the bridges and switches down to the function itself: its folders in /sys/devices.
    path: tuple[str, ...]
    numa_node: int | None = None


#: The shortest distance, and all that are so near.
Near = tuple[str, list[Function]]


def function(folder: str) -> Function | None:
    """Return the PCI function with this folder in sysfs, or a link to it; None for an adapter of software."""
    parts = os.path.realpath(folder).split(os.sep)
    root = next((index for index, part in enumerate(parts) if _ROOT.fullmatch(part)), None)
    if root is None or root == len(parts) - 1:
        return None
    node = sysfs.value(folder, "numa_node") or ""
    return Function(parts[-1], tuple(parts[root:]), int(node) if node.isdecimal() else None)


def gpus(root: str) -> list[Function]:
    """Return the GPUs of this host, of all vendors."""
    folders = [os.path.join(root, "bus/pci/devices", name) for name in sysfs.names(root, "bus/pci/devices")]
    found = [function(folder) for folder in folders if _is_gpu(folder)]
    return [gpu for gpu in found if gpu is not None]


def one_numa_node(root: str) -> bool:
    """Return whether this host has no more than one NUMA node."""
    return len([name for name in sysfs.names(root, "devices/system/node") if re.fullmatch("node[0-9]+", name)]) <= 1


def nearest(adapter: Function, others: Sequence[Function], *, one_node: bool) -> Near | None:
    """Return which of the others are the nearest; None if there are none."""
    far = {other: distance(adapter, other, one_node=one_node) for other in others}
    shortest = min(far.values(), key=DISTANCES.index, default="")
    return (shortest, [other for other in others if far[other] == shortest]) if shortest else None


def distance(one: Function, other: Function, *, one_node: bool) -> str:
    """Return the distance of two functions, as the legend of `nvidia-smi topo -m` has it.

    PIX: at most one bridge or switch between them; PXB: several; PHB: the host bridge; NODE: host bridges of one NUMA
    node; SYS: of several. A switch is one bridge upstream and one downstream for each of its ports.
    """
    common = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one.path, other.path, strict=False))))
    if common == 0:
        known = one.numa_node is not None and other.numa_node is not None
        return "NODE" if (one.numa_node == other.numa_node if known else one_node) else "SYS"
    if common == 1:
        return "PHB"
    return "PIX" if max(len(one.path), len(other.path)) - common <= 2 else "PXB"  # noqa: PLR2004 - port and function


def _is_gpu(folder: str) -> bool:
    kind = sysfs.value(folder, "class")
    return bool(kind and _GPU.fullmatch(kind)) and sysfs.value(folder, "vendor") not in _CONSOLES
