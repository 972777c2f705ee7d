"""The GPUs as `nvidia-smi` lists them. This module imports nothing that costs: it runs before all else."""

from externalresource_gpu.backends.query import Query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from externalresource_gpu.device import Device

#: Asked of drivers of any age. The cells of temperature and utilization are asked for their failures alone: a GPU that
#: "requires reset" says so there, and claims 0 MiB used elsewhere. The name comes last, as it may hold a comma.
OLD_FIELDS = (
    "index",
    "uuid",
    "pci.bus_id",
    "memory.total",
    "compute_mode",
    "utilization.gpu",
    "temperature.gpu",
    "name",
)
#: What driver 450 and newer know; one field that nvidia-smi does not know fails the whole query.
FIELDS = ("mig.mode.current", *OLD_FIELDS)


class NvidiaSmi:
    """Asks nvidia-smi, in a child process under the deadline."""

    name = "nvidia-smi"

    def __init__(self, program: str = "nvidia-smi", bound: str | None = None) -> None:
        self._program = program
        self._bound = bound  # where the driver lists its GPUs, for tests
        self._query: Query | None = None

    def start(self) -> None:
        self._query = self._ask(FIELDS)

    def devices(self, deadline: float) -> "list[Device]":
        query = self._query or self._ask(FIELDS)
        self._query = None
        from externalresource_gpu.backends import listing, pci, reasons  # while nvidia-smi runs

        fields: Sequence[str] = FIELDS
        status, out, err = query.answer(deadline)
        if listing.has_unknown_field(status, out):
            fields = OLD_FIELDS
            status, out, err = self._ask(fields).answer(deadline)
        if listing.is_empty(status, out):
            return reasons.none_found(self.name, pci.bound(self._bound))
        if not listing.is_complete(status, out):
            raise reasons.nvidia_smi_failed(status, out.strip() or err)
        return listing.parse(out, fields, pci.numa_node)

    def _ask(self, fields: "Sequence[str]") -> Query:
        return Query(self.name, [self._program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
