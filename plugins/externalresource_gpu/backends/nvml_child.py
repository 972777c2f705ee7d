"""The child process that asks NVML: one line of JSON on stdout, read by `nvml.read`."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

# Errors that say nothing about the GPU's health: what the call asks for does not exist, on this GPU or in this driver.
# Not Supported, Not Found, Function Not Found, Argument version mismatch, Deprecated
_UNKNOWN = {3, 6, 13, 25, 26}


def survey(nvml: Any) -> dict[str, Any]:
    """Return the record of each GPU, or the call that failed for all of them and its code."""
    call = "nvmlInit"
    try:
        nvml.nvmlInit()
        call = "nvmlDeviceGetCount"
        return {"gpus": [gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]}
    except nvml.NVMLError as error:
        return {"call": call, "code": error.value}


def gpu(nvml: Any, index: int) -> dict[str, Any]:
    """Return what one GPU tells; `failures` are the codes of NVML that speak against using it."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return {"index": index, "failures": [error.value]}
    failures: list[int] = []
    mismatch = getattr(nvml, "NVMLLibraryMismatchError", AttributeError)  # no NVMLError, and not in old releases

    def tell(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except nvml.NVMLError as error:
            if error.value not in _UNKNOWN:
                failures.append(error.value)
        except (AttributeError, mismatch):
            pass  # this pynvml or this driver is too old for the call
        return None

    known = {
        "uuid": tell(lambda: _text(nvml.nvmlDeviceGetUUID(handle))),
        "name": tell(lambda: _text(nvml.nvmlDeviceGetName(handle))),
        "bus_id": tell(lambda: _text(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        "memory": tell(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
        "compute_mode": tell(lambda: nvml.nvmlDeviceGetComputeMode(handle)),
        "mig_mode": tell(lambda: nvml.nvmlDeviceGetMigMode(handle)[0]),
        "recovery_action": tell(lambda: _recovery_action(nvml, handle)),
    }
    # Asked for their failures alone: a GPU that requires a reset says so here, and looks idle elsewhere.
    tell(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    tell(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return {"index": index, "failures": failures} | {key: value for key, value in known.items() if value is not None}


def main() -> None:
    """Print the answer and leave at once: what NVML does at shutdown or exit must not spoil it."""
    warnings.simplefilter("ignore")  # PyPI's deprecated `pynvml` warns on import
    try:
        import pynvml
    except ImportError as error:
        answer = {"no_pynvml": str(error)}
    else:
        answer = survey(pynvml)
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(0)


def _recovery_action(nvml: Any, handle: Any) -> int | None:
    """Return what the driver wants done about the GPU, if it knows this question (565 and newer)."""
    [answer] = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    return int(answer.value.uiVal) if answer.nvmlReturn == 0 else None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value  # bytes in old releases


if __name__ == "__main__":
    main()
