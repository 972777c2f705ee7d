"""What Linux knows of a PCI device, whatever the driver says."""

import os


def canonical(bus_id: str) -> str:
    """Return the bus id as today's drivers print it: `0000:0a:00.0` becomes `00000000:0A:00.0`."""
    domain, colon, rest = bus_id.upper().partition(":")
    return f"{domain:0>8}{colon}{rest}" if rest.count(":") == 1 else bus_id


def numa_node(bus_id: str, devices: str = "/sys/bus/pci/devices") -> int | None:
    """Return the NUMA node that the device is attached to; None where the machine does not tell."""
    domain, _, rest = bus_id.lower().partition(":")
    try:
        with open(os.path.join(devices, f"{int(domain, 16):04x}:{rest}", "numa_node"), "rb") as file:
            node = int(file.read())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def bound(directory: str | None = None) -> list[str]:
    """Return the bus ids of the GPUs that the NVIDIA driver is bound to, be they broken or not ours to open."""
    try:
        return sorted(os.listdir(directory or "/proc/driver/nvidia/gpus"))
    except OSError:
        return []
