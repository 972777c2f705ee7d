"""The child process that asks NVML: one line of JSON on stdout, read by `answer.read`.

Its arguments name what is wanted beyond the GPUs: `topology`, `processes`.
"""

import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND, VERSION_MISMATCH, DEPRECATED = 2, 3, 6, 13, 25, 26
# Errors that say nothing about the GPU's health: what the call asks for does not exist, on this GPU or in this driver.
_UNKNOWN = frozenset({NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND, VERSION_MISMATCH, DEPRECATED})
# With MIG on, some calls want an instance where they are given its GPU.
_UNKNOWN_WITH_MIG = _UNKNOWN | {INVALID_ARGUMENT}
_HOLES = frozenset({NOT_FOUND, INVALID_ARGUMENT})  # what stands for a MIG instance that is not there
_MIG_ON = 1
_GPU_SENSOR = 0
_MOST_LINKS = 36  # NVLinks of a GPU; those that it does not have are errors
_SWITCH = 2  # the far end of an NVLink
# The drivers that put 8 bytes more into each process than all others, before and after, and than pynvml expects.
_LONG_PROCESSES = ((535, 43), (535, 86))


class Library:
    """pynvml, whose errors are answers: each call may fail alone, be it for want of the function."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        mismatch = getattr(nvml, "NVMLLibraryMismatchError", AttributeError)  # no NVMLError, and not in old releases
        self._missing = (AttributeError, mismatch)

    def ask(self, function: str, *arguments: Any) -> tuple[Any, int]:
        """Return what the function says and 0, or None and the code of its error."""
        try:
            return getattr(self._nvml, function)(*arguments), 0
        except self._nvml.NVMLError as error:
            return None, int(error.value)
        except (*self._missing, UnicodeDecodeError):  # too old for this function, or it says what is no text
            return None, FUNCTION_NOT_FOUND

    def constant(self, name: str) -> Any:
        return getattr(self._nvml, name, None)


class Handle:
    """A GPU or a MIG instance; `failures` are the codes of NVML that speak against using it."""

    def __init__(self, library: Library, handle: Any) -> None:
        self.library, self.raw = library, handle
        self.failures: list[int] = []
        self.harmless = _UNKNOWN

    def attempt(self, function: str, *arguments: Any) -> tuple[Any, int]:
        """Ask for what may be wanting in a healthy device, whatever the error."""
        return self.library.ask(function, self.raw, *arguments)

    def ask(self, function: str, *arguments: Any) -> Any:
        answer, code = self.attempt(function, *arguments)
        if code and code not in self.harmless:
            self.failures.append(code)
        return answer

    def text(self, function: str) -> str | None:
        answer = self.ask(function)
        return None if answer is None else _text(answer)

    def memory(self) -> tuple[int, int] | None:
        """Return bytes, all and used: by the second version of this call what the driver reserves is not used."""
        version = self.library.constant("nvmlMemory_v2")
        answer, code = self.attempt("nvmlDeviceGetMemoryInfo", version) if version else (None, FUNCTION_NOT_FOUND)
        if code:
            answer = self.ask("nvmlDeviceGetMemoryInfo")
        return None if answer is None else (answer.total, answer.used)


def survey(nvml: Any, words: Sequence[str] = ()) -> dict[str, Any]:
    """Return the record of each GPU, or the call that failed for all of them and its code."""
    library = Library(nvml)
    for call in ("nvmlInit", "nvmlDeviceGetCount"):
        count, code = library.ask(call)
        if code:
            return {"call": call, "code": code}
    handles: dict[int, Handle] = {}
    gpus = []
    for index in range(count):
        handle, code = library.ask("nvmlDeviceGetHandleByIndex", index)
        if code:
            gpus.append({"index": index, "failures": [code]})
        else:
            handles[index] = Handle(library, handle)
            gpus.append(gpu(index, handles[index], processes="processes" in words))
    return {"gpus": gpus} | (topology(handles) if "topology" in words else {})


def gpu(index: int, handle: Handle, *, processes: bool = False) -> dict[str, Any]:
    """Return what one GPU tells; what it does not tell is left out."""
    mig_mode = (handle.ask("nvmlDeviceGetMigMode") or (None,))[0]
    record: dict[str, Any] = {"index": index, "failures": handle.failures, "mig_mode": mig_mode}
    if mig_mode == _MIG_ON:
        handle.harmless = _UNKNOWN_WITH_MIG
    record["uuid"] = handle.text("nvmlDeviceGetUUID")
    record["bus_id"] = _bus_id(handle.ask("nvmlDeviceGetPciInfo"))
    record["memory"] = handle.memory()
    record["compute_mode"] = handle.ask("nvmlDeviceGetComputeMode")
    if mig_mode == _MIG_ON:
        record |= _instances(handle, record["compute_mode"])
    # Asked for their failures alone: a GPU that requires a reset says so here, and looks idle elsewhere.
    handle.ask("nvmlDeviceGetUtilizationRates")
    handle.ask("nvmlDeviceGetTemperature", _GPU_SENSOR)
    record["name"] = handle.text("nvmlDeviceGetName")
    record["recovery_action"] = _recovery_action(handle)
    if processes:
        record["processes"] = _processes(handle)
    return _known(record)


def _instances(gpu: Handle, compute_mode: int | None) -> dict[str, Any]:
    """Return the MIG instances of a GPU, or the error for which they cannot be listed; and its compute mode.

    Holes among the instances are normal. The driver may tell the compute mode by instance only.
    """
    slots, code = gpu.attempt("nvmlDeviceGetMaxMigDeviceCount")
    if code:
        return {"unlisted": code}
    found: list[dict[str, Any]] = []
    broken: list[dict[str, Any]] = []
    for slot in range(slots):
        handle, code = gpu.attempt("nvmlDeviceGetMigDeviceHandleByIndex", slot)
        if not code:
            instance = Handle(gpu.library, handle)
            found.append(_instance(slot, instance))
            compute_mode = instance.attempt("nvmlDeviceGetComputeMode")[0] if compute_mode is None else compute_mode
        elif code not in _HOLES:
            broken.append({"mig_index": slot, "failures": [code]})
    if broken and not found:  # that is the GPU's fault: nobody knows whether there are any
        return {"unlisted": broken[0]["failures"][0]}
    instances = sorted([*found, *broken], key=lambda instance: int(instance["mig_index"]))
    return {"instances": instances, "compute_mode": compute_mode}


def _instance(slot: int, handle: Handle) -> dict[str, Any]:
    """Return what one MIG instance tells. Its attributes stand in for a profile that old drivers do not name."""
    attributes, _ = handle.attempt("nvmlDeviceGetAttributes")
    slices = ("gpuInstanceSliceCount", "computeInstanceSliceCount", "memorySizeMB")
    return _known(
        {
            "mig_index": slot,
            "failures": handle.failures,
            "uuid": handle.text("nvmlDeviceGetUUID"),
            "name": handle.text("nvmlDeviceGetName"),
            "memory": handle.memory(),
            "gpu_instance": handle.ask("nvmlDeviceGetGpuInstanceId"),
            "compute_instance": handle.ask("nvmlDeviceGetComputeInstanceId"),
            "attributes": attributes and [getattr(attributes, name) for name in slices],
        }
    )


def _processes(handle: Handle) -> list[tuple[int, int | None]] | None:
    """Return pid and bytes of each process that computes; None where that is not known, or not to be believed."""
    rows, code = handle.attempt("nvmlDeviceGetComputeRunningProcesses")
    if code == FUNCTION_NOT_FOUND:  # the third version of this call came with driver 510, and 535.98 lacks it again
        rows, code = handle.attempt("nvmlDeviceGetComputeRunningProcesses_v2")
    if code or (rows and _long_processes(handle.library) is not hasattr(rows[0], "usedGpuCcProtectedMemory")):
        return None
    return [(row.pid, row.usedGpuMemory) for row in rows]


def _long_processes(library: Library) -> bool:
    version, _ = library.ask("nvmlSystemGetDriverVersion")
    match = re.match(r"(\d+)\.(\d+)", _text(version or ""))
    first, last = _LONG_PROCESSES
    return match is not None and first <= (int(match[1]), int(match[2])) <= last


def topology(handles: Mapping[int, Handle]) -> dict[str, Any]:
    """Return the PCIe level of each two GPUs, and what is at the far ends of each GPU's NVLinks, as far as known."""
    levels = [
        (one, other, handle.attempt("nvmlDeviceGetTopologyCommonAncestor", far.raw)[0])
        for (one, handle), (other, far) in itertools.combinations(handles.items(), 2)
    ]
    return {"levels": levels, "nvlinks": [(index, _nvlinks(handle)) for index, handle in handles.items()]}


def _nvlinks(handle: Handle) -> list[str]:
    """Return what each active NVLink leads to: a bus id, or `switch`."""
    ends = []
    for link in range(_MOST_LINKS):
        active, _ = handle.attempt("nvmlDeviceGetNvLinkState", link)
        if active:
            kind, _ = handle.attempt("nvmlDeviceGetNvLinkRemoteDeviceType", link)
            remote = None if kind == _SWITCH else handle.attempt("nvmlDeviceGetNvLinkRemotePciInfo", link)[0]
            ends.append("switch" if kind == _SWITCH else _bus_id(remote))
    return [end for end in ends if end]


def main() -> None:
    """Print the answer and leave at once: what NVML does at shutdown or exit must not spoil it."""
    warnings.simplefilter("ignore")  # PyPI's deprecated `pynvml` warns on import
    try:
        import pynvml
    except ImportError as error:
        answer = {"no_pynvml": str(error)}
    else:
        answer = survey(pynvml, sys.argv[1:])
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(0)


def _recovery_action(handle: Handle) -> int | None:
    """Return what the driver wants done about the GPU, if it knows this question (565 and newer)."""
    field = handle.library.constant("NVML_FI_DEV_GET_GPU_RECOVERY_ACTION")
    answers = handle.ask("nvmlDeviceGetFieldValues", [field]) if field else None
    return int(answers[0].value.uiVal) if answers and answers[0].nvmlReturn == 0 else None


def _bus_id(pci: Any) -> str | None:
    return None if pci is None else _text(pci.busId)


def _known(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value  # bytes in old releases
