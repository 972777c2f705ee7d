"""One GPU as discovery sees it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU. What a backend does not know is None, never 0."""

    #: Position in PCI bus order, as nvidia-smi and NVML count. A lost GPU leaves a gap; a container counts from 0.
    index: int
    #: `GPU-...`, the same on the host and in every container; a Jetson's has no prefix.
    uuid: str | None = None
    name: str | None = None
    #: Memory in MiB; None on machines with unified memory (GB10, Jetson), which are healthy.
    memory_total: int | None = None
    #: `00000000:10:00.0`, as nvidia-smi prints it.
    pci_bus_id: str | None = None
    #: `Default`, `Exclusive_Process`, `Prohibited`, as nvidia-smi prints it.
    compute_mode: str | None = None
    #: `Enabled` or `Disabled`; None where the GPU has no MIG.
    mig_mode: str | None = None
    numa_node: int | None = None
    #: Why this GPU must not be handed out; None if nothing speaks against it.
    unusable: str | None = None

    @property
    def token(self) -> str:
        """What CUDA_VISIBLE_DEVICES and the coordination file call it."""
        return str(self.index)

    @property
    def parent_uuid(self) -> str | None:
        """The GPU that this is a slice of: none, as it is a whole one."""
        return None

    @property
    def parent_token(self) -> str | None:
        return None

    def properties(self) -> dict[str, str]:
        """Return what is known, under the names of nvidia-smi's query fields; `memory.total` is in MiB."""
        known = {
            "index": self.index,
            "unusable": self.unusable,
            "uuid": self.uuid,
            "name": self.name,
            "memory.total": self.memory_total,
            "pci.bus_id": self.pci_bus_id,
            "compute_mode": self.compute_mode,
            "mig.mode.current": self.mig_mode,
            "numa_node": self.numa_node,
        }
        return {key: str(value) for key, value in known.items() if value is not None}
