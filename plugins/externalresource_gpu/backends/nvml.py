"""The GPUs as NVML lists them, through pynvml (of the package nvidia-ml-py), in a child process.

`nvmlInit` can hang inside C, where no signal handler runs, and libnvidia-ml has been seen to crash its caller.
"""

import sys

from externalresource_gpu.backends.query import Query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from externalresource_gpu.device import Device

_COMPUTE_MODES = {0: "Default", 1: "Exclusive_Thread", 2: "Prohibited", 3: "Exclusive_Process"}
_MIG_MODES = {0: "Disabled", 1: "Enabled"}
_RECOVERY_ACTIONS = {1: "Reset", 2: "Reboot", 4: "Drain and Reset", 6: "Bus Reset", 7: "System Reboot"}
_MIB = 1 << 20


class Nvml:
    """Asks NVML, in a child process under the deadline."""

    name = "nvml"

    def __init__(self, python: str = sys.executable, bound: str | None = None) -> None:
        self._python = python
        self._bound = bound  # where the driver lists its GPUs, for tests
        self._query: Query | None = None

    def start(self) -> None:
        self._query = self._ask()

    def devices(self, deadline: float) -> "list[Device]":
        query = self._query or self._ask()
        self._query = None
        from externalresource_gpu.backends import pci, reasons

        found = read(*query.answer(deadline))
        return [device(gpu) for gpu in found] or reasons.none_found("NVML", pci.bound(self._bound))

    def _ask(self) -> Query:
        return Query("NVML", [self._python, "-P", "-m", "externalresource_gpu.backends.nvml_child"])


def read(status: int, out: str, err: str) -> "list[dict[str, Any]]":
    """Return what the child says of each GPU. DiscoveryError if it could not ask NVML, or did not answer."""
    import json

    from externalresource.errors import DiscoveryError
    from externalresource_gpu.backends import reasons

    try:
        answer = json.loads(out.splitlines()[-1])  # something may have printed before
        if no_pynvml := answer.get("no_pynvml"):
            raise DiscoveryError(f"NVML: pynvml cannot be imported ({no_pynvml}): `pip install nvidia-ml-py`")
        if "code" not in answer:
            return list(answer["gpus"])
    except (LookupError, ValueError, AttributeError):
        said = reasons.quote((err.strip() or out).rpartition("\n")[2])
        raise DiscoveryError(f"NVML: the child process gave no answer (exit {status}): {said}") from None
    if answer["code"] in (reasons.NOT_FOUND, reasons.NO_GPUS):
        return []
    raise reasons.nvml_failed(answer["call"], answer["code"])


def device(gpu: "dict[str, Any]") -> "Device":
    """Return the device for the child's record of one GPU: the same as nvidia-smi's."""
    from externalresource_gpu.backends import pci, reasons
    from externalresource_gpu.device import Device

    bus_id, memory = gpu.get("bus_id"), gpu.get("memory")
    compute_mode = _COMPUTE_MODES.get(gpu.get("compute_mode", -1))
    failures = [reasons.words(code) for code in gpu["failures"]]
    recovery_action = _RECOVERY_ACTIONS.get(gpu.get("recovery_action", 0))
    return Device(
        index=gpu["index"],
        uuid=gpu.get("uuid"),
        name=gpu.get("name"),
        memory_total=memory // _MIB if memory else None,
        pci_bus_id=bus_id and pci.canonical(bus_id),
        compute_mode=compute_mode,
        mig_mode=_MIG_MODES.get(gpu.get("mig_mode", -1)),
        numa_node=pci.numa_node(bus_id) if bus_id else None,
        unusable=reasons.unusable(failures, compute_mode, recovery_action),
    )
