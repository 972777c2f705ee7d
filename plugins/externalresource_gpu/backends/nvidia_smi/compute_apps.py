"""What computes on which GPU: `--query-compute-apps=gpu_uuid,pid,used_memory`. Touches no process and no file."""

from collections.abc import Iterable, Mapping

from externalresource.api import replace
from externalresource.errors import DiscoveryError
from externalresource_gpu.backends.nvidia_smi import listing
from externalresource_gpu.device import Device, Process

_COLUMNS = 3


def attach(gpus: Iterable[Device], said: str | DiscoveryError) -> list[Device]:
    """Return the GPUs with what computes on them; unknown where nvidia-smi does not tell of it."""
    found = parse(said) if isinstance(said, str) else None
    if found is None:
        return list(gpus)
    return [replace(gpu, processes=found.get(gpu.uuid, ())) if gpu.uuid else gpu for gpu in gpus]


def parse(text: str) -> Mapping[str, tuple[Process, ...] | None] | None:
    """Return the processes by the UUID of their GPU, in the order of their pids; None for a GPU that cannot tell.

    A GPU that is not mentioned has none. Returns None if a line says anything else: what it stands for is unknown.
    """
    found: dict[str, list[Process] | None] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        cells = [cell.strip() for cell in line.split(",")]
        if listing.is_aside(line):
            continue
        if len(cells) != _COLUMNS:
            return None
        uuid, pid, memory = cells
        before = found.setdefault(uuid, [])
        if not listing.is_number(pid):
            found[uuid] = None
        elif before is not None:
            before.append(Process(int(pid), int(memory) if listing.is_number(memory) else None))
    return {
        uuid: None if known is None else tuple(sorted(known, key=lambda process: process.pid))
        for uuid, known in found.items()
    }
