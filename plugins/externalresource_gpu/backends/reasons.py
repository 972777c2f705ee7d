"""Why GPUs could not be listed, or one of them not be used, and what to do: in one line each.

NVML's error codes (nvmlReturn_t) are the exit status of nvidia-smi as well, where they fit a byte.
"""

from externalresource.errors import DiscoveryError
from externalresource_gpu.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INVALID_ARGUMENT, NO_PERMISSION, NOT_FOUND, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND = 2, 4, 6, 9, 12
GPU_IS_LOST, RESET_REQUIRED, BLOCKED, MISMATCH, NO_GPUS, UNKNOWN = 15, 16, 17, 18, 28, 999
_NOT_INSTALLED = 127  # of the shell in a wrapper around nvidia-smi; no error of NVML has this number

#: The words of nvidia-smi; pynvml has others for some.
WORDS = {
    INVALID_ARGUMENT: "Invalid Argument",
    NO_PERMISSION: "Insufficient Permissions",
    NOT_FOUND: "Not Found",
    8: "Insufficient External Power",
    DRIVER_NOT_LOADED: "Driver Not Loaded",
    10: "Timeout",
    11: "Interrupt Request Issue",
    LIBRARY_NOT_FOUND: "NVML Shared Library Not Found",
    14: "Corrupted infoROM",
    GPU_IS_LOST: "GPU is lost",
    RESET_REQUIRED: "GPU requires reset",
    BLOCKED: "GPU access blocked by the operating system",
    MISMATCH: "Driver/library version mismatch",
    20: "Insufficient Memory",
    23: "Insufficient Resources",
    NO_GPUS: "No GPUs Found",
    UNKNOWN: "Unknown Error",
}

_DRIVER_LOG = "see `dmesg` for lines with NVRM or Xid"
_ADVICE = {
    INVALID_ARGUMENT: "the driver is too old to be asked this: update it",
    NO_PERMISSION: "check who may open /dev/nvidia*: SELinux and rootless containers forbid it",
    NOT_FOUND: f"a GPU is broken: reboot the machine, {_DRIVER_LOG}; `--backend nvml` lists the others",
    DRIVER_NOT_LOADED: "load the driver (`modprobe nvidia`) or install it for the running kernel; a container needs "
    "the NVIDIA Container Toolkit and `--gpus`",
    LIBRARY_NOT_FOUND: "install the NVIDIA driver; a container gets its library from the NVIDIA Container Toolkit, "
    "when started with `--gpus`",
    GPU_IS_LOST: f"a GPU fell off the bus: reboot the machine, {_DRIVER_LOG}; `--backend nvml` lists the others",
    RESET_REQUIRED: "reset it (`nvidia-smi --gpu-reset -i INDEX`) or reboot the machine",
    BLOCKED: "the host keeps the GPU from this system: under WSL, update the Windows driver and `wsl --shutdown`",
    MISMATCH: "the driver was updated and the old one still runs: reboot, or stop all GPU work and reload the nvidia "
    "kernel modules; in a container, recreate it",
    _NOT_INSTALLED: "the NVIDIA driver brings nvidia-smi, into a container with `--gpus`",
    UNKNOWN: f"a container that lost its devices (`systemctl daemon-reload` does that) has to be recreated; on a host, "
    f"{_DRIVER_LOG}",
}
_NO_DEVICES_HERE = (
    "the driver runs, but its devices are not here: a container gets them with `--gpus` (NVIDIA Container Toolkit), a "
    "pod with a limit of nvidia.com/gpu; on a host, `nvidia-modprobe -u -c 0` makes /dev/nvidia*"
)
_CODE_TOO_LARGE = 255  # nvidia-smi's exit status for a code that does not fit: of those that it meets, Unknown Error
_LONGEST = 300


def words(code: int) -> str:
    return WORDS.get(code, f"NVML error {code}")


def advice(code: int, bound: "Sequence[str]" = ()) -> str:
    """Return what to do about an NVML error code, where the driver is bound to these GPUs."""
    if bound and code in (DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND):
        return _NO_DEVICES_HERE
    return _ADVICE.get(code, _DRIVER_LOG)


def quote(text: str) -> str:
    """Return the text in one line of bounded length."""
    line = "; ".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def failure(said: str) -> str:
    """Return what nvidia-smi says is wrong with a GPU in NVML's words, without the advice that may follow them."""
    known = (known for known in WORDS.values() if said == known or said.startswith(f"{known}."))
    return next(known, quote(said))


def unusable(
    failures: "Iterable[str]", compute_mode: str | None, recovery_action: str | None = None, *, mig: bool = False
) -> str | None:
    """Return why a GPU must not be handed out, if there is a reason. A drain of its links alone is none.

    With MIG on, a container may use instances of a GPU without being permitted to ask for the GPU's own memory.
    """
    found = [failure for failure in dict.fromkeys(failures) if not (mig and failure == WORDS[NO_PERMISSION])]
    if recovery_action and ("Reset" in recovery_action or "Reboot" in recovery_action):
        found.append(f"recovery action is {recovery_action}")
    if compute_mode == "Prohibited":
        found.append("compute mode is Prohibited")
    return ", ".join(found) or None


def instances_unlisted(said: object) -> str:
    """Return why a GPU in MIG mode must not be handed out: nobody knows its instances."""
    return f"its MIG instances cannot be listed: {quote(str(said))}"


def nvidia_smi_failed(status: int, said: str, bound: "Sequence[str]" = ()) -> DiscoveryError:
    """Return the error for an exit status and the message that came with it."""
    if not said.strip():
        return DiscoveryError(f"nvidia-smi listed no GPU and gave no reason (exit {status}): run it by hand")
    code = UNKNOWN if status == _CODE_TOO_LARGE else status
    return DiscoveryError(f"nvidia-smi failed (exit {status}): {quote(said)}: {advice(code, bound)}")


def crashed(name: str, number: int) -> DiscoveryError:
    import signal

    known = {known.value: known.name for known in signal.Signals}
    return DiscoveryError(
        f"{name} was ended by {known.get(number, f'signal {number}')}: the driver's library may not fit the driver: "
        f"reinstall the driver, {_DRIVER_LOG}"
    )


def not_started(name: str, program: str, error: OSError) -> DiscoveryError:
    if isinstance(error, FileNotFoundError) and program == "nvidia-smi":
        return DiscoveryError(
            "nvidia-smi was not found on PATH: the NVIDIA driver brings it, into a container with `--gpus`; to try "
            "without a GPU, `--simulate 8`"
        )
    return DiscoveryError(f"{name}: {program!r} cannot be run: {error.strerror}")


def overdue(name: str, seconds: float) -> DiscoveryError:
    return DiscoveryError(
        f"{name} did not answer within {seconds:.1f} s: the driver hangs ({_DRIVER_LOG}), or initializes its GPUs "
        "anew for each caller (`nvidia-smi -pm 1` ends that), or needs a longer --timeout"
    )


def none_found(name: str, bound: "Sequence[str]") -> list[Device]:
    """Return no device, if the driver is bound to none: a broken GPU is not a host without GPUs."""
    if not bound:
        return []
    raise DiscoveryError(
        f"{name} finds no GPU, but the driver is bound to {len(bound)} ({quote(', '.join(bound))}): they are broken "
        f"({_DRIVER_LOG}), or this container, cgroup or user may not open them (/dev/nvidia*)"
    )


def unique(source: str, devices: "Iterable[Device]") -> list[Device]:
    """Return the devices by index. DiscoveryError if two have one index or one UUID, as claims go by them."""
    known: dict[int, Device] = {}
    uuids: set[str] = set()
    for device in devices:
        if device.index in known:
            raise DiscoveryError(f"{source}: two GPUs have the index {device.index}")
        if device.uuid in uuids:
            raise DiscoveryError(f"{source}: two GPUs have the UUID {device.uuid}")
        known[device.index] = device
        uuids.update(filter(None, [device.uuid]))
    return [known[index] for index in sorted(known)]
