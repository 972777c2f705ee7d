"""What CUDA shows to a process under a CUDA_VISIBLE_DEVICES. Pure: it touches no process and no environment.

The grammar is that of the CUDA Programming Guide and, where that is silent, what PyTorch and nvitop agree on.

An index means what nvidia-smi prints, gaps included: whoever set the mask (a scheduler, a person) read it there. CUDA
itself counts the GPUs that it can see, so that behind a lost GPU its numbers are lower: `ambiguity` says when that, or
its order by speed, makes a mask mean something else to CUDA than to us.
"""

from externalresource_gpu.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    #: A device by one entry of the mask; None if there is none, or more than one.
    _Find = Callable[[str], Device | None]

PCI_ORDER = "PCI_BUS_ID"
_BLANKS = " \t\n\v\f\r"  # those of C; str.strip() knows more
_DIGITS = "0123456789"


def visible(mask: str | None, devices: "Sequence[Device]", *, one_instance: bool = True) -> list[Device]:
    """Return what a process with this mask sees, in CUDA's order; unusable devices, too, each with its reason.

    `devices` are the host's GPUs with their instances. No mask (None) shows all: each GPU, or its instances if MIG is
    on. A mask shows either GPUs or one MIG instance, as CUDA does; an instance stands for its GPU if that is named.
    With `one_instance` false it shows all instances that it names, as a bound for several processes.
    """
    if mask is None:
        return [shown for gpu in devices for shown in _shown(gpu)]
    if mask.startswith("GPU-"):
        found = _by_uuid(mask.split(","), devices)
    elif mask.startswith("MIG-"):
        found = _by_instance(mask.split(","), devices)
    else:
        found = _by_index(mask.split(","), devices)
    shown = [device for named in found for device in ((named,) if _is_instance(named) else _shown(named))]
    first = next((device for device in shown if _is_instance(device)), None)
    return [first] if first is not None and one_instance else shown


def ordinal(device: Device, shown: "Sequence[Device]") -> int | None:
    """Return by which number CUDA knows a device in a process that sees `shown`; None if by none.

    A process sees one MIG instance and nothing beside it: among several devices with an instance, none has a number.
    CUDA does not count a GPU that is lost.
    """
    if len(shown) > 1 and any(map(_is_instance, shown)):
        return None
    counted = [one.place for one in shown if _is_seen(one)]
    return counted.index(device.place) if device.place in counted else None


def ambiguity(
    mask: str | None, devices: "Sequence[Device]", order: str | None, *, relative: bool = False
) -> str | None:
    """Return why the mask may mean other GPUs to CUDA than to nvidia-smi; None if it means the same.

    `order` is CUDA_DEVICE_ORDER. With `relative` the question is that of ordinals, which no mask leaves to the order.
    """
    by_index = mask is not None and _number(mask.partition(",")[0]) is not None
    if not (by_index or (relative and mask is None)):
        return None
    if order != PCI_ORDER and len({gpu.name for gpu in devices if gpu.name is not None}) > 1:
        return (
            f"CUDA_DEVICE_ORDER is not {PCI_ORDER}: CUDA counts the fastest GPU first, nvidia-smi by bus id, and these "
            "are of several kinds"
        )
    last = max((device.index for device in visible(mask, devices)), default=-1)
    lost = _first_lost(devices)
    if by_index and lost <= last:
        return f"GPU {lost} cannot be seen: CUDA counts without it, nvidia-smi with it"
    return None


def _first_lost(devices: "Sequence[Device]") -> int:
    """Return the first index that CUDA cannot count: that of a lost GPU, or the one after the last."""
    seen = {gpu.index for gpu in devices if _is_seen(gpu)}
    return next(index for index in range(len(seen) + 1) if index not in seen)


def _is_seen(device: Device) -> bool:
    """Return whether CUDA counts it, usable or not; a GPU that is lost does not even tell its UUID."""
    return device.uuid is not None or device.unusable is None


def _shown(gpu: Device) -> "Sequence[Device]":
    return gpu.instances if gpu.mig_mode == "Enabled" else (gpu,)


def _is_instance(device: Device) -> bool:
    return device.mig_index is not None


def _by_uuid(entries: "Sequence[str]", devices: "Sequence[Device]") -> list[Device]:
    def find(prefix: str) -> Device | None:
        named = [gpu for gpu in devices if gpu.uuid is not None and gpu.uuid.startswith(prefix)]
        return named[0] if len(named) == 1 else None

    return _listed([entry if entry.startswith("GPU-") else None for entry in entries], find)


def _by_instance(entries: "Sequence[str]", devices: "Sequence[Device]") -> list[Device]:
    instances = {name: instance for gpu in devices for instance in gpu.instances for name in _names(instance)}
    return _listed([entry if entry.startswith("MIG-") else None for entry in entries], instances.get)


def _names(instance: Device) -> list[str]:
    """Return what the mask may call an instance: the form of today, and that of drivers before 470."""
    ids = instance.parent_uuid, instance.gpu_instance, instance.compute_instance
    old = None if None in ids else "MIG-{}/{}/{}".format(*ids)
    return [name for name in (instance.uuid, old) if name is not None]


def _by_index(entries: "Sequence[str]", devices: "Sequence[Device]") -> list[Device]:
    gpus = {str(gpu.index): gpu for gpu in devices}
    last = _size(max(gpus, key=_size, default=""))
    return _listed([_number(entry) for entry in entries], gpus.get, lambda number: _size(number) < last)


def _size(number: str) -> tuple[int, str]:
    """Return what orders numbers without leading zeros."""
    return len(number), number


def _listed(
    entries: "Sequence[str | None]", find: "_Find", is_gap: "Callable[[str], bool]" = lambda _: False
) -> list[Device]:
    """Return what the entries name, up to the first that names nothing; nothing at all if one is named twice.

    A gap names a device that is not there any more, and ends nothing.
    """
    end = entries.index(None) if None in entries else len(entries)
    read = [entry for entry in entries[:end] if entry is not None]
    if len(set(read)) < len(read):
        return []
    found: list[Device] = []
    for entry in read:
        device = find(entry)
        if device in found:
            return []
        if device is not None:
            found.append(device)
        elif not is_gap(entry):
            break
    return found


def _number(entry: str) -> str | None:
    """Return the number that the entry begins with, as strtoul reads it, without leading zeros; None if there is none.

    It stays text: a mask may hold more digits than int() takes.
    """
    text = entry.lstrip(_BLANKS)
    sign = text[:1] if text[:1] in ("+", "-") else ""
    rest = text[len(sign) :]
    digits = rest[: len(rest) - len(rest.lstrip(_DIGITS))]
    number = digits.lstrip("0") or digits[:1]
    return None if not number or (sign == "-" and number != "0") else number
