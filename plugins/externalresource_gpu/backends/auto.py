"""NVML, and where it does not answer, nvidia-smi."""

import time

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends.nvidia_smi.backend import NvidiaSmi
from externalresource_gpu.backends.nvml.backend import Nvml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from externalresource_gpu.backends import Backend
    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device


class Auto:
    """Asks one backend after the other; `name` is the one that answered."""

    def __init__(
        self, backends: "Sequence[Backend] | None" = None, *, topology: bool = False, processes: bool = False
    ) -> None:
        self.name = "auto"
        self._answered: Backend | None = None
        self._backends: Sequence[Backend] = backends or (
            Nvml(topology=topology, processes=processes),
            NvidiaSmi(topology=topology, processes=processes),
        )

    def start(self) -> None:
        self._backends[0].start()

    def devices(self, deadline: float) -> "list[Device]":
        self.name, self._answered = "auto", None
        said: list[str] = []
        for backend in self._backends:
            if said and time.monotonic() >= deadline:
                said.append(f"{backend.name} was not asked, as no time was left")
                continue
            try:
                found = backend.devices(deadline)
            except DiscoveryError as error:
                from externalresource_gpu.backends.stuck import DriverStuckError

                if isinstance(error, DriverStuckError):  # the next one would only hang as well
                    raise
                said.append(str(error))
            else:
                self.name, self._answered = backend.name, backend
                return found
        raise DiscoveryError(f"no GPU can be listed: {'; '.join(said)}")

    def links(self, deadline: float) -> "Links":
        """Return what the one that answered knows: of another's GPUs the indices could be others."""
        return self._answered.links(deadline) if self._answered else {}
