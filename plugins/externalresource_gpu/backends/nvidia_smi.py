"""The GPUs as `nvidia-smi` lists them. This module imports nothing that costs: it runs before all else."""

from externalresource_gpu.backends.query import Query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

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
    "compute_mode",
    "utilization.gpu",
    "temperature.gpu",
    "name",
)
#: The driver that a field came with. One field that nvidia-smi does not know fails the whole query.
SINCE = {"gpu_recovery_action": 570, "mig.mode.current": 450}
_USUAL = 450  # of a driver whose version is not known


class NvidiaSmi:
    """Asks nvidia-smi, in a child process under the deadline."""

    name = "nvidia-smi"

    def __init__(
        self,
        program: str = "nvidia-smi",
        version: str = "/sys/module/nvidia/version",
        bound: str | None = None,
    ) -> None:
        self._program = program
        self._version = version  # the file that holds the driver's version
        self._bound = bound
        self._asked: tuple[Sequence[str], Query] | None = None

    def start(self) -> None:
        self._asked = self._ask(_fields(self._version))

    def devices(self, deadline: float) -> "list[Device]":
        fields, query = self._asked or self._ask(_fields(self._version))
        self._asked = None
        from externalresource_gpu.backends import listing, pci, reasons  # while nvidia-smi runs

        status, out, err = query.answer(deadline)
        while (unknown := listing.unknown_field(status, out)) in SINCE and unknown in fields:
            fields, query = self._ask([field for field in fields if field != unknown])
            status, out, err = query.answer(deadline)
        if listing.is_empty(status, out):
            return reasons.none_found(self.name, pci.bound(self._bound))
        if not listing.is_complete(status, out):
            raise reasons.nvidia_smi_failed(status, out.strip() or err)
        return listing.parse(out, fields, pci.numa_node)

    def _ask(self, fields: "Sequence[str]") -> "tuple[Sequence[str], Query]":
        argv = [self._program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        return fields, Query(self.name, argv)


def _fields(version: str) -> "Sequence[str]":
    """Return what the running driver can be asked: to read its version costs less than to ask twice."""
    try:
        with open(version, encoding="utf-8") as file:
            driver = int(file.read().partition(".")[0])
    except (OSError, ValueError):
        driver = _USUAL
    return [field for field in FIELDS if SINCE.get(field, 0) <= driver]
