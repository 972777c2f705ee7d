"""The driver `rdma`: adapters with a port that is up, and which GPUs are near."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from externalresource.api import Device, driver
from externalresource.errors import DiscoveryError
from externalresource_rdma import adapters, pci, sysfs
from externalresource_rdma.adapters import Adapter, Port

_UCX, _NCCL = "UCX_NET_DEVICES", "NCCL_IB_HCA"
_NO_PORT = "none"


@dataclass(frozen=True)
class Options:
    """An adapter is handed out if one of its ports is as these say."""

    link_layer: Literal["any", "InfiniBand", "Ethernet"] = "any"
    state: Literal["ACTIVE", "ACTIVE_DEFER", "ARMED", "INIT", "DOWN", "any"] = "ACTIVE"
    sysfs: str = "/sys"

    def __post_init__(self) -> None:
        if not os.path.isabs(self.sysfs):
            raise ValueError(f"option 'sysfs' must be an absolute path, not {self.sysfs!r}")

    def wants(self, port: Port) -> bool:
        return self.link_layer in ("any", port.link_layer) and self.state in ("any", port.state)


def variables(joined: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a process that is to use just these ports.

    UCX takes a list of DEVICE:PORT (docs.open-mpi.org, "InfiniBand / RoCE support"; docs.nvidia.com/doca, "DOCA UCX").
    NCCL takes the same list after one `=`: without that each entry would be a prefix, and mlx5_1 mean mlx5_10, too
    (docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html, NCCL_IB_HCA). RCCL reads NCCL's variable.
    An empty list is no restriction for NCCL: a process that is to use no port is given a name that none has.
    """
    joined = {**joined, _UCX: joined.get(_UCX) or _NO_PORT}
    return {**joined, _NCCL: f"={joined[_UCX]}"}


@driver("rdma", Options, environment=variables)
def rdma(options: Options) -> Iterable[Device]:
    """RDMA network adapters (InfiniBand, RoCE, iWARP) with a port that is up."""
    try:
        found = adapters.listed(options.sysfs)
    except FileNotFoundError as error:
        raise DiscoveryError(
            f"{error.filename} is not there: no RDMA driver is loaded on this host (try: modprobe ib_uverbs mlx5_ib)"
        ) from None
    except OSError as error:
        raise DiscoveryError(f"{error.filename} cannot be read: {error.strerror}") from None
    guids = Counter(adapter.guid for adapter in found)
    gpus, one_node = pci.gpus(options.sysfs), pci.one_numa_node(options.sysfs)
    for adapter in found:
        function = pci.function(os.path.join(adapter.folder, "device"))
        near = pci.nearest(function, gpus, one_node=one_node) if function else None
        ports = [port for port in adapter.ports if options.wants(port)]
        yield Device(
            adapter.name,
            adapter.guid if guids[adapter.guid] == 1 else None,
            properties=_properties(adapter, ports, function, near),
            environment={_UCX: ",".join(f"{adapter.name}:{port.number}" for port in ports)} if ports else {},
            unusable=None if ports else _missing(adapter, options),
        )


def _properties(
    adapter: Adapter, ports: Sequence[Port], function: pci.Function | None, near: pci.Near | None
) -> dict[str, str]:
    wanted = ports or adapter.ports
    known = {
        "name": sysfs.value(adapter.folder, "hca_type"),  # `MT4129`
        "ports": "; ".join(map(str, adapter.ports)),
        "state": _each(port.state for port in wanted),
        "link_layer": _each(port.link_layer for port in wanted),
        "rate": _each(port.rate for port in wanted),
        **adapter.card,
        "pci.bus_id": function and function.bus_id,
        "numa_node": function and function.numa_node,
        "gpu.distance": near and near[0],
        "gpu.nearest": near and ",".join(gpu.bus_id for gpu in near[1]),
    }
    return {name: str(value) for name, value in known.items() if value not in (None, "")}


def _missing(adapter: Adapter, options: Options) -> str:
    wanted = "port" if options.link_layer == "any" else f"{options.link_layer} port"
    state = "" if options.state == "any" else f" is {options.state}"
    if not adapter.ports:
        return "it has no ports"
    has = "; ".join(map(str, adapter.ports))
    return f"no {wanted}{state} ({has})" if state else f"it has no {wanted} ({has})"


def _each(values: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))
