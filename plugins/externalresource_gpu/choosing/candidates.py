"""Which of the devices may be handed out to whom asks, and why the others may not. Pure."""

from externalresource.api import record, replace
from externalresource.errors import NotEnoughDevicesError, too_few
from externalresource_gpu.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

INSTANCES, GPUS = "instances", "gpus"
_SHOWN = 24  # characters of a mask
_MIG_ON = "MIG is on: its instances are the devices"


@record
class Wanted:
    """What a device must be to be handed out."""

    #: INSTANCES (of a GPU with MIG its instances, else the GPU), GPUS (those without MIG) or a profile (`1g.10gb`).
    mig: str = INSTANCES
    #: MiB.
    min_memory: int | None = None
    #: Words of the device's name, in capitals or not: `a100`, `H100 80GB`.
    name: str | None = None
    #: CUDA_VISIBLE_DEVICES; None if there is none, or if it does not count.
    mask: str | None = None


def listed(gpus: "Sequence[Device]", shown: "Sequence[Device]", wanted: Wanted) -> list[Device]:
    """Return all GPUs, each followed by its MIG instances; what must not be handed out says why.

    `shown` is what the mask shows.
    """
    places = {device.place for device in shown}

    def judged(gpu: Device, device: Device) -> Device:
        reason = (
            device.unusable
            or gpu.unusable
            or _not_by_mig(device, wanted.mig)
            or _not_by_memory(device, wanted.min_memory)
            or _not_by_name(device, wanted.name)
        )
        if reason is None and device.place not in places:
            reason = f"hidden by CUDA_VISIBLE_DEVICES={_short(wanted.mask or '')}"
        return device if reason == device.unusable else replace(device, unusable=reason)

    return [judged(gpu, device) for gpu in gpus for device in (gpu, *gpu.instances)]


def usable(devices: "Sequence[Device]", shown: "Sequence[Device]", amount: int) -> list[Device]:
    """Return those of the listed devices that may be handed out, in the order of the mask.

    NotEnoughDevicesError if this host could never give `amount`.
    """
    counted = [device for device in devices if device.unusable != _MIG_ON]
    if amount > len(counted):
        raise too_few(amount, len(counted))
    found = {device.place: device for device in counted if device.unusable is None}
    if amount > len(found):
        reasons = "; ".join(_reasons(counted))
        raise NotEnoughDevicesError(f"{amount} wanted, only {len(found)} of {len(counted)} are usable ({reasons})")
    return [found[device.place] for device in shown if device.place in found]


def why_not_now(device: Device, now: "Mapping[str, Device]") -> str | None:
    """Return why a device must not be handed out any more, by what is listed now, by place; None if it may."""
    found = now.get(device.place)
    if found is None or found.uuid not in (None, device.uuid):  # a lost GPU does not even tell its UUID
        return "it is not there any more"
    return found.unusable


def reasons_now(devices: "Sequence[Device]", now: "Mapping[str, Device]") -> str:
    """Return why some of the devices must not be handed out any more."""
    return "; ".join(_reasons([replace(device, unusable=why_not_now(device, now)) for device in devices]))


def _not_by_mig(device: Device, mig: str) -> str | None:
    if device.mig_index is not None:
        if mig == GPUS:
            return "only whole GPUs are wanted (--mig gpus)"
        if mig not in (INSTANCES, device.mig_profile):
            return f"its profile is not {mig}" if device.mig_profile else "its MIG profile is unknown"
    elif device.mig_mode == "Enabled":
        if device.instances:
            return _MIG_ON
        return "MIG is on, and it has no instances (`nvidia-smi mig -cgi ... -C` makes some)"
    elif mig not in (INSTANCES, GPUS):
        return f"it is no MIG instance of profile {mig}"
    return None


def _not_by_memory(device: Device, least: int | None) -> str | None:
    if least is None or (device.memory_total is not None and device.memory_total >= least):
        return None
    has = "unknown" if device.memory_total is None else f"{device.memory_total} MiB"
    return f"its memory is {has}, and {least} MiB are wanted"


def _not_by_name(device: Device, part: str | None) -> str | None:
    if part is None:
        return None
    import re

    if re.search(rf"(?<!\w){re.escape(part)}(?!\w)", device.name or "", re.IGNORECASE):  # whole words: A10 is no A100
        return None
    return f"its name is {device.name or 'unknown'}, and {part!r} is wanted"


def _short(mask: str) -> str:
    short = mask if len(mask) <= _SHOWN else f"{mask[:_SHOWN]}..."
    return short if short.isprintable() else repr(short)


def _reasons(devices: "Sequence[Device]") -> "Iterator[str]":
    """Yield each reason once, with the devices that it keeps from being handed out."""
    places: dict[str, list[str]] = {}
    for device in devices:
        if device.unusable:
            places.setdefault(device.unusable, []).append(device.place)
    for reason, these in places.items():
        yield f"GPU {', '.join(these)}: {reason}"
