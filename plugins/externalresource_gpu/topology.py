"""How the GPUs of a host are connected. Pure: it touches no process and no file."""

from collections.abc import Mapping

#: The link of two GPUs, the smaller index first, in the words of `nvidia-smi topo -m`: `NV12` is as many NVLinks, then
#: come PIX (one PCIe bridge), PXB (several), PHB (a host bridge), NODE (one NUMA node) and SYS (between NUMA nodes).
#: A pair that is missing is unknown.
Links = Mapping[tuple[int, int], str]
