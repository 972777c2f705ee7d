"""What the child process says of NVML, read as devices. Touches no process and no file."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

from externalresource.api import replace
from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import pci, reasons
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device, Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_COMPUTE_MODES = {0: "Default", 1: "Exclusive_Thread", 2: "Prohibited", 3: "Exclusive_Process"}
_MIG_MODES = {0: "Disabled", 1: "Enabled"}
_RECOVERY_ACTIONS = {1: "Reset", 2: "Reboot", 4: "Drain and Reset", 6: "Bus Reset", 7: "System Reboot"}
#: A board of two GPUs has a PCIe bridge of its own: nvidia-smi calls that PIX, too.
_LEVELS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_MIB, _GIB = 1 << 20, 1 << 30
_EIGHTHS = 8  # the parts of its memory that a GPU gives to instances


def read(status: int, out: str, err: str, bound: Sequence[str] = ()) -> "dict[str, Any]":
    """Return what the child says. DiscoveryError if it could not ask NVML, or did not answer.

    `bound` are the GPUs that the driver runs, as far as this process can know.
    """
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])  # something may have printed before
        if no_pynvml := answer.get("no_pynvml"):
            raise DiscoveryError(f"NVML: pynvml cannot be imported ({no_pynvml}): `pip install nvidia-ml-py`")
        if "code" not in answer:
            return {"gpus": answer["gpus"]} | answer
    except (LookupError, ValueError, AttributeError, RecursionError):
        said = reasons.quote((err.strip() or out).rpartition("\n")[2])
        raise DiscoveryError(f"NVML: the child process gave no answer (exit {status}): {said}") from None
    if answer["code"] in (reasons.NOT_FOUND, reasons.NO_GPUS):
        return {"gpus": []}
    raise DiscoveryError(
        f"NVML failed: {answer['call']}: {reasons.words(answer['code'])} ({answer['code']}): "
        f"{reasons.advice(answer['code'], bound)}"
    )


def device(told: "dict[str, Any]", numa_node: Callable[[str], int | None]) -> Device:
    """Return the device for the child's record of one GPU: the same as nvidia-smi's."""
    bus_id = told.get("bus_id")
    compute_mode = _COMPUTE_MODES.get(told.get("compute_mode", -1))
    mig_mode = _MIG_MODES.get(told.get("mig_mode", -1))
    failures = [reasons.words(code) for code in told["failures"]]
    recovery_action = _RECOVERY_ACTIONS.get(told.get("recovery_action", 0))
    unusable = reasons.unusable(failures, compute_mode, recovery_action, mig=mig_mode == "Enabled")
    if unusable is None and "unlisted" in told:
        unusable = reasons.instances_unlisted(reasons.words(told["unlisted"]))
    memory_total, memory_used = _memory(told)
    gpu = Device(
        index=told["index"],
        uuid=told.get("uuid"),
        name=told.get("name"),
        memory_total=memory_total,
        memory_used=memory_used,
        pci_bus_id=bus_id and pci.canonical(bus_id),
        compute_mode=compute_mode,
        mig_mode=mig_mode,
        numa_node=numa_node(bus_id) if bus_id else None,
        unusable=unusable,
        processes=_processes(told),
    )
    instances = [_instance(gpu, instance, told.get("memory", (0,))[0]) for instance in told.get("instances", ())]
    return replace(gpu, instances=tuple(instances)) if instances else gpu


def _instance(gpu: Device, told: "dict[str, Any]", memory: int) -> Device:
    """Return a MIG instance of a GPU that has so many bytes of memory."""
    memory_total, memory_used = _memory(told)
    uuid = told.get("uuid")
    unusable = reasons.unusable([reasons.words(code) for code in told["failures"]], None)
    return replace(
        gpu.instance(told["mig_index"], uuid, _profile(told, memory)),
        memory_total=memory_total,
        memory_used=memory_used,
        unusable=unusable or (None if uuid else "its UUID is unknown"),
        gpu_instance=told.get("gpu_instance"),
        compute_instance=told.get("compute_instance"),
    )


def _profile(told: "dict[str, Any]", memory: int) -> str | None:
    """Return what the name ends in, or the profile made of the instance's slices and its part of so much memory."""
    _, found, profile = f" {told.get('name', '')}".rpartition(" MIG ")
    if found and profile and " " not in profile:
        return str(profile)
    if not (memory and all(told.get("attributes", [0]))):
        return None
    slices, compute_slices, mib = told["attributes"]
    eighths = -(-mib * _MIB * _EIGHTHS // memory)
    profile = f"{slices}g.{(eighths * -(-memory // _GIB) + _EIGHTHS // 2) // _EIGHTHS}gb"
    return profile if slices == compute_slices else f"{compute_slices}c.{profile}"


def _memory(told: "dict[str, Any]") -> tuple[int | None, int | None]:
    """Return MiB, all and used, rounded as today's nvidia-smi does: what is used at all is not 0."""
    total, used = told.get("memory", (0, 0))
    return (total // _MIB, -(-used // _MIB)) if total else (None, None)


def _processes(told: "dict[str, Any]") -> tuple[Process, ...] | None:
    if (found := told.get("processes")) is None:
        return None
    return tuple(Process(pid, None if used is None else -(-used // _MIB)) for pid, used in found)


def placed(gpus: list[Device], bound: Sequence[str]) -> list[Device]:
    """Return the GPUs, lost ones with the bus id that the driver still lists: it counts as NVML does, by bus id."""
    buses = sorted(map(pci.canonical, bound))
    if len(buses) != len(gpus) or any(gpu.pci_bus_id not in (None, bus) for gpu, bus in zip(gpus, buses, strict=True)):
        return gpus  # which is which is not known
    return [replace(gpu, pci_bus_id=bus) for gpu, bus in zip(gpus, buses, strict=True)]


def links(answer: "dict[str, Any]") -> Links:
    """Return how the GPUs of the child's answer are connected: by NVLinks where they are, else by PCIe."""
    gpus = {pci.canonical(gpu["bus_id"]): gpu["index"] for gpu in answer["gpus"] if "bus_id" in gpu}
    ends = {
        index: Counter(gpus.get(pci.canonical(end), end) for end in found) for index, found in answer.get("nvlinks", ())
    }
    known = {(one, other): _LEVELS[level] for one, other, level in answer.get("levels", ()) if level in _LEVELS}
    for one, other in combinations(sorted(ends), 2):
        # Between GPUs at switches each link serves every pair: the one with fewer sets the bound.
        if number := ends[one][other] or min(ends[one]["switch"], ends[other]["switch"]):
            known[one, other] = f"NV{number}"
    return known
