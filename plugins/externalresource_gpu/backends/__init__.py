"""Where the devices come from: one module per source, each answers `devices(deadline) -> list[Device]`.

The discovery script starts nvidia-smi from here before it imports anything that costs: nothing is imported above.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device

    class Backend(Protocol):
        """A source of devices. `name` says which one answered."""

        name: str

        def start(self) -> None:
            """Begin the query and return at once. Raises nothing: `devices` tells what went wrong."""

        def devices(self, deadline: float) -> list[Device]:
            """Return this host's GPUs by index, unusable ones with the reason; the empty list is a host without GPUs.

            Starts the query if nobody did. Raises DiscoveryError, in one line, if the GPUs could not be determined
            before `deadline` (of `time.monotonic`).
            """

        def links(self, deadline: float) -> Links:
            """Return how the GPUs are connected, after `devices`: nothing if that was not asked for, or is not known.

            Raises DiscoveryError only if the answer is not there before `deadline`.
            """


NAMES = ("auto", "nvml", "nvidia-smi", "simulated")


def create(name: str, simulate: "str | None" = None, *, topology: bool = False, processes: bool = False) -> "Backend":
    """Return the backend `name`; `simulate` (a number of GPUs, a machine or a YAML file) implies `simulated`.

    `topology` and `processes` ask for more, which takes longer: the links between GPUs, and what computes on each.
    Raises ConfigurationError for an unknown name, and for a machine that does not exist.
    """
    if simulate is not None or name == "simulated":
        from externalresource_gpu.backends.simulated.backend import Simulated

        return Simulated(simulate, topology=topology, processes=processes)
    if name == "nvidia-smi":
        from externalresource_gpu.backends.nvidia_smi.backend import NvidiaSmi

        return NvidiaSmi(topology=topology, processes=processes)
    if name == "nvml":
        from externalresource_gpu.backends.nvml.backend import Nvml

        return Nvml(topology=topology, processes=processes)
    if name == "auto":
        from externalresource_gpu.backends.auto import Auto

        return Auto(topology=topology, processes=processes)
    from externalresource.errors import ConfigurationError, did_you_mean

    raise ConfigurationError(f"backend must be one of {', '.join(NAMES)}, not {name!r}{did_you_mean(name, NAMES)}")
