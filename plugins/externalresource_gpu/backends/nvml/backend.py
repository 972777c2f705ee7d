"""The GPUs as NVML lists them, through pynvml (of the package nvidia-ml-py), in a child process.

`nvmlInit` can hang inside C, where no signal handler runs, and libnvidia-ml has been seen to crash its caller.
"""

import os
import sys

from externalresource_gpu.backends.query import Query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device

#: Not with `-m`, which imports runpy and importlib.util first.
_PROGRAM = "from externalresource_gpu.backends.nvml.child import main; main()"


class Nvml:
    """Asks NVML, in a child process under the deadline."""

    name = "nvml"

    def __init__(
        self,
        python: str | None = None,
        bound: str | None = None,
        numa_node: "Callable[[str], int | None] | None" = None,
        *,
        topology: bool = False,
        processes: bool = False,
    ) -> None:
        words = [*["topology"] * topology, *["processes"] * processes]
        self._argv = [python or interpreter(), "-P", "-c", _PROGRAM, *words]
        self._bound, self._numa_node = bound, numa_node  # where the driver lists its GPUs, and Linux their NUMA nodes
        self._query: Query | None = None
        self._links: Links = {}

    def start(self) -> None:
        self._query = self._ask()

    def devices(self, deadline: float) -> "list[Device]":
        query = self._query or self._ask()
        self._query, self._links = None, {}
        from externalresource_gpu.backends import pci, reasons
        from externalresource_gpu.backends.nvml import answer  # while NVML is asked

        bound, numa_node = pci.bound(self._bound), self._numa_node or pci.numa_node
        told = answer.read(*query.answer(deadline), bound)
        gpus = [answer.device(gpu, numa_node) for gpu in told["gpus"]]
        found = reasons.unique("NVML", answer.placed(gpus, bound))
        self._links = answer.links(told)
        return found or reasons.none_found("NVML", bound)

    def links(self, deadline: float) -> "Links":  # noqa: ARG002 - they came with the devices
        return self._links

    def _ask(self) -> Query:
        return Query("NVML", self._argv)


def interpreter() -> str:
    """Return a Python to start: the one that runs this. Where it is embedded, `sys.executable` is empty, or java."""
    for path in (sys.executable, f"{sys.exec_prefix}/bin/python3", getattr(sys, "_base_executable", "")):
        if path and os.path.basename(path).startswith(("python", "pypy")) and os.access(path, os.X_OK):
            return path
    return "python3"  # as PATH has it; if it has none, the error says so
