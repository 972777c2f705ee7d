"""What can be simulated by a number or a name alone, and the identifiers that are made up for it.

No YAML is imported here: who asks for a number pays nothing for the files.
"""

import os
import zlib

from externalresource_gpu.device import Device

#: The most GPUs of a simulated machine.
MOST = 1024
_CONNECTED = 16  # of a number; for more of them half a million pairs would be written down

_FOLDER = os.path.join(os.path.dirname(__file__), "machines")
_ENDING = ".yaml"


def names() -> list[str]:
    """Return the names of the machines that come with this package, each of them a file."""
    return sorted(name.removesuffix(_ENDING) for name in os.listdir(_FOLDER) if name.endswith(_ENDING))


def path(name: str) -> str:
    """Return the file of a machine, which need not be there."""
    return os.path.join(_FOLDER, name + _ENDING)


def uuid(machine: str, index: int) -> str:
    """Return a UUID that is the same in each process, well-formed, and seen to be simulated: `GPU-5100...`."""
    return f"GPU-5100{index:04x}-0000-5000-8000-{zlib.crc32(machine.encode()):012x}"


def instance_uuid(machine: str, index: int, mig_index: int) -> str:
    """Return such a UUID for a MIG instance: `MIG-5100...`, with its number and that of its GPU in front."""
    return f"MIG-5100{index:04x}-{mig_index:04x}-5000-9000-{zlib.crc32(machine.encode()):012x}"


def count(number: int) -> list[Device]:
    """Return as many idle A100, half of them on each of two NUMA nodes."""
    return [
        Device(
            index=index,
            uuid=uuid("count", index),
            name="NVIDIA A100-SXM4-40GB",
            memory_total=40960,
            memory_used=0,
            pci_bus_id=f"{index // 224:08X}:{16 + index % 224:02X}:00.0",
            compute_mode="Default",
            mig_mode="Disabled",
            numa_node=2 * index // number,
            processes=(),
        )
        for index in range(number)
    ]


def count_links(number: int) -> dict[tuple[int, int], str]:
    """Return how so many A100 are connected: each with each by twelve NVLinks, if one machine can have so many."""
    pairs = ((first, second) for second in range(number) for first in range(second))
    return dict.fromkeys(pairs, "NV12") if number <= _CONNECTED else {}
