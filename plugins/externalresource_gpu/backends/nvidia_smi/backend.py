"""The GPUs as `nvidia-smi` lists them. This module imports nothing that costs: it runs before all else."""

import time

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends.query import Query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device

#: What is asked, the newest fields first. Temperature, utilization and recovery action are asked for what they tell of
#: failures: a GPU that "requires reset" says so there, and claims 0 MiB used elsewhere. The name may hold a comma.
FIELDS = (
    "gpu_recovery_action",
    "mig.mode.current",
    "index",
    "uuid",
    "pci.bus_id",
    "memory.total",
    "memory.used",
    "compute_mode",
    "utilization.gpu",
    "temperature.gpu",
    "name",
)
#: The driver that a field came with. One field that nvidia-smi does not know fails the whole query.
SINCE = {"gpu_recovery_action": 570, "mig.mode.current": 450}
_USUAL = 450  # of a driver whose version is not known
_NEEDED = "index"  # without the other fields the GPUs are still known
_PROCESSES = "--query-compute-apps=gpu_uuid,pid,used_memory"
_CSV = "--format=csv,noheader,nounits"


class NvidiaSmi:
    """Asks nvidia-smi, in child processes under the deadline; all that can be asked at once runs side by side."""

    name = "nvidia-smi"

    def __init__(
        self,
        program: str = "nvidia-smi",
        version: str = "/sys/module/nvidia/version",
        bound: str | None = None,
        numa_node: "Callable[[str], int | None] | None" = None,
        *,
        topology: bool = False,
        processes: bool = False,
    ) -> None:
        self._program = program
        self._version = version  # the file that holds the driver's version
        self._bound, self._numa_node = bound, numa_node
        self._asks_topology, self._asks_processes = topology, processes
        self._gpus: tuple[Sequence[str], Query] | None = None
        self._topology: Query | None = None
        self._processes: Query | None = None
        self._asked: list[Query] = []

    def start(self) -> None:
        self._drop()
        self._gpus = self._ask_gpus(_fields(self._version))
        if self._asks_topology:
            self._topology = self._ask("topo", "-m")
        if self._asks_processes:
            self._processes = self._ask(_PROCESSES, _CSV)

    def devices(self, deadline: float) -> "list[Device]":
        if self._gpus is None:
            self.start()
        try:
            return self._answer(deadline)
        except BaseException:
            self._drop()
            raise

    def links(self, deadline: float) -> "Links":
        query, self._topology = self._topology, None
        if query is None:
            return {}
        from externalresource_gpu.backends.nvidia_smi import topo

        matrix = _answer(query, deadline)
        return topo.parse(matrix) if isinstance(matrix, str) else {}

    def _answer(self, deadline: float) -> "list[Device]":
        from externalresource_gpu.backends.nvidia_smi import listing  # while nvidia-smi runs

        found = self._listed(deadline)
        if any(gpu.mig_mode == listing.MIG_ENABLED for gpu in found):
            instances, details = self._ask("-L"), self._ask("-q", "-x")
            from externalresource_gpu.backends.nvidia_smi import mig_listing

            found = mig_listing.attach(found, _answer(instances, deadline), _answer(details, deadline))
        if self._processes is not None:
            query, self._processes = self._processes, None
            found = listing.attach_processes(found, _answer(query, deadline))
        return found

    def _listed(self, deadline: float) -> "list[Device]":
        from externalresource_gpu.backends import pci, reasons
        from externalresource_gpu.backends.nvidia_smi import listing

        numa_node = self._numa_node or pci.numa_node
        (fields, query), self._gpus = self._gpus or self._ask_gpus(_fields(self._version)), None
        status, out, err = query.answer(deadline)
        while (unknown := listing.unknown_field(status, out)) in fields and unknown != _NEEDED:
            fields, query = self._ask_gpus([field for field in fields if field != unknown])
            status, out, err = query.answer(deadline)
        if listing.is_empty(status, out):
            return reasons.none_found(self.name, pci.bound(self._bound))
        if listing.is_complete(status, out):
            return listing.parse(out, fields, numa_node)
        bound = pci.bound(self._bound)
        each = self._ask_each(fields, bound, deadline) if listing.names_lost(out) else {}
        if not any(isinstance(answer, str) and listing.is_complete(0, answer) for answer in each.values()):
            raise reasons.nvidia_smi_failed(status, out.strip() or err, bound)
        return listing.parse_each(each, fields, numa_node)

    def _ask_each(
        self, fields: "Sequence[str]", bound: "Sequence[str]", deadline: float
    ) -> "dict[str, str | DiscoveryError]":
        """Return what nvidia-smi says of each GPU that the driver is bound to: old ones give up at one that is lost."""
        queries = {bus_id: self._ask(f"--id={bus_id}", *_table(fields)) for bus_id in bound}
        return {bus_id: _answer(query, deadline) for bus_id, query in queries.items()}

    def _ask_gpus(self, fields: "Sequence[str]") -> "tuple[Sequence[str], Query]":
        return fields, self._ask(*_table(fields))

    def _ask(self, *words: str) -> Query:
        self._asked.append(Query(self.name, [self._program, *words]))
        return self._asked[-1]

    def _drop(self) -> None:
        self._gpus = self._topology = self._processes = None
        while self._asked:
            self._asked.pop().end()


def _table(fields: "Sequence[str]") -> "Sequence[str]":
    return f"--query-gpu={','.join(fields)}", _CSV


def _answer(query: Query, deadline: float) -> "str | DiscoveryError":
    """Return what nvidia-smi said in full, or why it did not. Raises DiscoveryError only at the deadline."""
    from externalresource_gpu.backends import reasons
    from externalresource_gpu.backends.nvidia_smi import listing

    try:
        status, out, err = query.answer(deadline)
    except DiscoveryError as error:
        if time.monotonic() >= deadline:
            raise
        return error
    return out if listing.is_answer(status, out) else reasons.nvidia_smi_failed(status, out.strip() or err)


def _fields(version: str) -> "Sequence[str]":
    """Return what the running driver can be asked: to read its version costs less than to ask twice."""
    try:
        with open(version, encoding="utf-8") as file:
            driver = int(file.read().partition(".")[0])
    except (OSError, ValueError):
        driver = _USUAL
    return [field for field in FIELDS if SINCE.get(field, 0) <= driver]
