"""Machines that can be simulated, with the names, sizes, bus ids and NUMA nodes of real ones."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

from externalresource_gpu.device import Device

#: The most GPUs of a simulated machine.
MOST = 1024


def uuid(machine: str, index: int) -> str:
    """Return a UUID that is the same in each process, well-formed, and seen to be simulated: `GPU-5100...`."""
    return f"GPU-5100{index:04x}-0000-5000-8000-{zlib.crc32(machine.encode()):012x}"


def count(number: int) -> list[Device]:
    """Return as many A100, half of them on each of two NUMA nodes."""
    buses = [f"{index // 224:08X}:{16 + index % 224:02X}:00.0" for index in range(number)]
    nodes = [2 * index // number for index in range(number)]
    return _board("count", "NVIDIA A100-SXM4-40GB", 40960, " ".join(buses), nodes, mig_mode="Disabled")


def _board(
    machine: str,
    name: str,
    memory: int | None,
    buses: str,
    nodes: Sequence[int | None],
    *,
    mig_mode: str | None = None,
    first: int = 0,
) -> list[Device]:
    """Return one GPU per bus: a number of the first PCI domain, or a whole bus id."""
    return [
        Device(
            index=index,
            uuid=uuid(machine, index),
            name=name,
            memory_total=memory,
            pci_bus_id=bus if ":" in bus else f"00000000:{bus}:00.0",
            compute_mode="Default",
            mig_mode=mig_mode,
            numa_node=node,
        )
        for index, (bus, node) in enumerate(zip(buses.split(), nodes, strict=True), first)
    ]


def _dgx_1() -> list[Device]:
    buses = "06 07 0A 0B 85 86 89 8A"
    return _board("dgx-1", "Tesla V100-SXM2-16GB", 16384, buses, [0] * 4 + [1] * 4)


def _dgx_a100(machine: str = "dgx-a100") -> list[Device]:
    buses, nodes = "07 0F 47 4E 87 90 B7 BD", [3, 3, 1, 1, 7, 7, 5, 5]
    return _board(machine, "NVIDIA A100-SXM4-40GB", 40960, buses, nodes, mig_mode="Disabled")


def _dgx_h100() -> list[Device]:
    buses, nodes = "1B 43 52 61 9D C3 D1 DF", [0] * 4 + [1] * 4
    return _board("dgx-h100", "NVIDIA H100 80GB HBM3", 81559, buses, nodes, mig_mode="Disabled")


def _gb10() -> list[Device]:
    return _board("gb10", "NVIDIA GB10", None, "0000000F:01:00.0", [0])


def _gpus_16() -> list[Device]:
    buses = "34 36 39 3B 57 59 5C 5E B7 B9 BC BE E0 E2 E5 E7"
    return _board("gpus-16", "Tesla V100-SXM3-32GB", 32768, buses, [0] * 8 + [1] * 8)


def _mixed() -> list[Device]:
    return [
        *_board("mixed", "NVIDIA A10", 23028, "17 31", [0, 0]),
        *_board("mixed", "NVIDIA A100-PCIE-40GB", 40960, "B1 CA", [1, 1], mig_mode="Disabled", first=2),
    ]


def _one_lost() -> list[Device]:
    devices = _dgx_a100("one-lost")
    devices[3] = dataclasses.replace(devices[3], unusable="GPU is lost")
    return devices


def _t4() -> list[Device]:
    return _board("t4", "Tesla T4", 15360, "1E", [None])


MACHINES: dict[str, Callable[[], list[Device]]] = {
    "dgx-1": _dgx_1,
    "dgx-a100": _dgx_a100,
    "dgx-h100": _dgx_h100,
    "gb10": _gb10,
    "gpus-16": _gpus_16,
    "mixed": _mixed,
    "one-lost": _one_lost,
    "t4": _t4,
}
