"""GPUs as an operator sees them, and as the variables of a process name them."""

from collections.abc import Collection, Iterable, Mapping

from externalresource.api import DeviceInfo, ExternalResourceInfo, order
from externalresource_gpu.script import dialects


def infos(gpus: Iterable[Mapping[str, str]]) -> list[ExternalResourceInfo]:
    """Return one info for each.

    Its properties are `index`, and what else is known: `uuid`, `name`, `memory.total` (MiB), `pci.bus_id`, ... The
    index of a MIG instance is its UUID, as in CUDA_VISIBLE_DEVICES; `place` is its `GPU:NUMBER` for people.
    """
    return [DeviceInfo(gpu) for gpu in gpus]


def environment(gpus: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
    """Return CUDA_VISIBLE_DEVICES and its kin for exactly these GPUs, ordered by index."""
    return dialects.environment(
        [dialects.mask_name(gpu.get_property("uuid"), gpu.get_property("index") or "") for gpu in order(gpus)]
    )
