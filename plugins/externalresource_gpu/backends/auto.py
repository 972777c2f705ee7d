"""NVML, and where it does not answer, nvidia-smi."""

import time

from externalresource_gpu.backends.nvidia_smi import NvidiaSmi
from externalresource_gpu.backends.nvml import Nvml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from externalresource_gpu.backends import Backend
    from externalresource_gpu.device import Device


class Auto:
    """Asks one backend after the other; `name` is the one that answered."""

    def __init__(self, backends: "Sequence[Backend] | None" = None) -> None:
        self.name = "auto"
        self._backends: Sequence[Backend] = (Nvml(), NvidiaSmi()) if backends is None else backends

    def start(self) -> None:
        self._backends[0].start()

    def devices(self, deadline: float) -> "list[Device]":
        from externalresource.errors import DiscoveryError

        said: list[str] = []
        for backend in self._backends:
            if said and time.monotonic() >= deadline:
                said.append(f"{backend.name} was not asked, as no time was left")
                continue
            try:
                found = backend.devices(deadline)
            except DiscoveryError as error:
                said.append(str(error))
            else:
                self.name = backend.name
                return found
        raise DiscoveryError(f"no GPU can be listed: {'; '.join(said)}")
