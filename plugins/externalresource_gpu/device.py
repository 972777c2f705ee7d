"""One GPU, or one MIG instance of it, as discovery sees it."""

from externalresource.api import record


@record
class Process:
    """A process that computes on a GPU. The pid is that of the host, which a container cannot map."""

    pid: int
    #: MiB; None where the driver does not tell.
    memory: int | None = None


@record
class Device:
    """A GPU or a MIG instance. What a backend does not know is None, never 0."""

    #: Position in PCI bus order, as nvidia-smi and NVML count; an instance has that of its GPU. A lost GPU leaves a
    #: gap; a container counts from 0.
    index: int
    #: `GPU-...` or `MIG-...`, the same on the host and in every container; a Jetson's has no prefix.
    uuid: str | None = None
    name: str | None = None
    #: Memory in MiB; None on machines with unified memory (GB10, Jetson), which are healthy.
    memory_total: int | None = None
    #: MiB in use, without what the driver reserves.
    memory_used: int | None = None
    #: `00000000:10:00.0`, as nvidia-smi prints it; an instance has that of its GPU.
    pci_bus_id: str | None = None
    #: `Default`, `Exclusive_Process`, `Prohibited`, as nvidia-smi prints it.
    compute_mode: str | None = None
    #: `Enabled` or `Disabled`; None where the GPU has no MIG, and for an instance.
    mig_mode: str | None = None
    numa_node: int | None = None
    #: Why this device must not be handed out; None if nothing speaks against it.
    unusable: str | None = None
    #: What computes on it; None if that was not asked for, or is not known (a MIG instance's processes never are).
    processes: tuple[Process, ...] | None = None
    #: The MIG instances of a GPU, in the order of `nvidia-smi -L`.
    instances: "tuple[Device, ...]" = ()
    #: Of a MIG instance: `3g.40gb` or `1c.3g.40gb`; None if the driver is too old to tell.
    mig_profile: str | None = None
    #: Of a MIG instance: its number among those of its GPU, `Device N` in `nvidia-smi -L`; holes are normal.
    mig_index: int | None = None
    #: Of a MIG instance: the ids in `MIG-GPU-<uuid>/<GPU instance>/<compute instance>`.
    gpu_instance: int | None = None
    compute_instance: int | None = None
    #: Of a MIG instance: the GPU that it is a slice of. The two exclude each other.
    parent_uuid: str | None = None

    @property
    def token(self) -> str:
        """What CUDA_VISIBLE_DEVICES and the coordination file call it."""
        return str(self.index) if self.mig_index is None else self.uuid or self.place

    @property
    def place(self) -> str:
        """Where it is, for people and NVIDIA_VISIBLE_DEVICES: `0`, or `0:2` for an instance of GPU 0."""
        return str(self.index) if self.mig_index is None else f"{self.index}:{self.mig_index}"

    @property
    def parent_token(self) -> str | None:
        return None if self.mig_index is None else str(self.index)

    def instance(self, number: int, uuid: str | None, profile: str | None) -> "Device":
        """Return a MIG instance of this GPU, with what it has of it; all else is not known yet."""
        return Device(
            index=self.index,
            uuid=uuid,
            name=self.name and " ".join(filter(None, [self.name, "MIG", profile])),
            pci_bus_id=self.pci_bus_id,
            numa_node=self.numa_node,
            mig_profile=profile,
            mig_index=number,
            parent_uuid=self.uuid,
        )

    def properties(self) -> dict[str, str]:
        """Return what is known, under the names of nvidia-smi's query fields; memory is in MiB."""
        known = {
            "index": self.token,
            "unusable": self.unusable,
            "uuid": self.uuid,
            "name": self.name,
            "memory.total": self.memory_total,
            "memory.used": self.memory_used,
            "pci.bus_id": self.pci_bus_id,
            "compute_mode": self.compute_mode,
            "mig.mode.current": self.mig_mode,
            "mig.profile": self.mig_profile,
            "place": None if self.mig_index is None else self.place,
            "parent.uuid": self.parent_uuid,
            "parent.index": self.parent_token,
            "numa_node": self.numa_node,
        }
        return {key: str(value) for key, value in known.items() if value is not None}
