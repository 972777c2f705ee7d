"""The driver `amd`: GPUs and their compute partitions, by ROCm's own tools."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from externalresource.api import Device, driver
from externalresource.errors import DiscoveryError
from externalresource_amd import gpus, masks, smi
from externalresource_amd.gpus import GPU
from externalresource_amd.masks import Name

_AMD_SMI, _ROCM_SMI = "amd-smi", "rocm-smi"
_UNSEEN = Name(None, None)
_TELL_ALL = ("--showuniqueid", "--showproductname", "--showbus", "--showmeminfo", "vram", "--showtoponuma", "--json")


@dataclass(frozen=True)
class Options:
    #: amd-smi or rocm-smi, or a path to one of them; by default amd-smi, and rocm-smi where that does not answer.
    command: str | None = None
    #: Hand out what the masks of this process hide from it, too.
    ignore_mask: bool = False

    def __post_init__(self) -> None:
        if self.command is not None and not self.command.strip():
            raise ValueError("option 'command' must be a command or its path, not ''")


@driver("amd", Options, environment=masks.of_process)
def amd(options: Options, deadline: float) -> Iterable[Device]:
    """AMD's GPUs, and the compute partitions of those that are partitioned."""
    found = _asked(options.command, deadline)
    names = _names(found)
    hidden = {} if options.ignore_mask else masks.hiding([name for name in names if name != _UNSEEN], os.environ)
    return [_device(gpu, name, hidden.get(name), found) for gpu, name in zip(found, names, strict=True)]


def _asked(command: str | None, deadline: float) -> list[GPU]:
    failed: list[smi.UnavailableError] = []
    for program in [command] if command else [_AMD_SMI, _ROCM_SMI]:
        try:
            if os.path.basename(program).startswith(_ROCM_SMI):
                return gpus.of_rocm_smi(*smi.ask(program, [_TELL_ALL], deadline))
            return gpus.of_amd_smi(*smi.ask(program, [("list", "--json"), ("static", "--json")], deadline))
        except ValueError as error:
            failed.append(smi.UnavailableError(f"{program} printed JSON that is not what was asked for: {error}"))
        except smi.UnavailableError as error:
            failed.append(error)
    there = [error for error in failed if not isinstance(error, smi.MissingError)]
    said = "; ".join(map(str, there or failed))
    raise DiscoveryError(said if there or command else f"{said} (option 'command' takes a path)")


def _names(found: Sequence[GPU]) -> list[Name]:
    """Return what ROCm's runtime calls each; nothing for one that it does not see, or would take for another.

    A partition has a number only: its UUID is its GPU's for one kernel, and its own for the next.
    """
    positions, shared = gpus.positions(found), gpus.shared(found)

    def has_uuid(gpu: GPU) -> bool:
        seen = gpu.index in positions or not positions
        return seen and gpu.partition is None and gpu.uuid not in shared

    return [Name(positions.get(gpu.index), gpu.uuid if has_uuid(gpu) else None) for gpu in found]


def _device(gpu: GPU, name: Name, mask: str | None, found: Sequence[GPU]) -> Device:
    token = name.position if name.uuid is None else name.uuid
    known = {
        "name": gpu.name,
        "memory.total": gpu.memory,
        "pci.bus_id": gpu.bus_id,
        "numa_node": gpu.numa_node,
        "compute_partition": gpu.compute_partition,
        "memory_partition": gpu.memory_partition,
        "partition_id": gpu.partition,
        "parent.uuid": gpu.uuid if gpu.partition is not None else None,
        "target": gpu.target,
    }
    identity = [other.identity for other in found].count(gpu.identity) == 1
    return Device(
        str(gpu.index),
        gpu.identity if identity else None,
        {key: str(value) for key, value in known.items() if value is not None},
        {masks.ROCR: str(token)} if token is not None else {},
        unusable=gpu.unhealthy
        or (_nameless(gpu, found) if token is None else None)
        or (f"hidden by {mask}" if mask else None),
        parent_uuid=gpu.uuid if gpu.partition is not None else None,
    )


def _nameless(gpu: GPU, found: Sequence[GPU]) -> str:
    if gpus.positions(found):
        return "the kernel's compute driver (KFD) has no node for it"
    why = f"{gpu.uuid} is that of others, too" if gpu.uuid else "it has no UUID"
    return f"ROCm's runtime has no name for it: {why}, and no node id is told"
