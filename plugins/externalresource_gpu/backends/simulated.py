"""GPUs that are not there, for trying things out and for tests on any machine."""

import os

from externalresource.errors import ConfigurationError, did_you_mean
from externalresource_gpu.backends import machines
from externalresource_gpu.device import Device


class Simulated:
    """Answers with the GPUs of a number, a machine or a file. ConfigurationError if it is none of them."""

    name = "simulated"

    def __init__(self, what: str | None) -> None:
        self._file: str | None = None
        self._devices: list[Device] = []
        if what is not None and _is_file(what):
            self._file = what
        else:
            self._devices = _machine(what or "")

    def start(self) -> None:
        """Nothing runs ahead: a file is read by `devices`, where its errors belong."""

    def devices(self, deadline: float) -> list[Device]:  # noqa: ARG002 - a simulation is never late
        if self._file is None:
            return list(self._devices)
        from externalresource_gpu.backends import simulated_file

        return simulated_file.read(self._file)


def _is_file(what: str) -> bool:
    return "/" in what or what.endswith((".yaml", ".yml")) or os.path.isfile(what)


def _machine(what: str) -> list[Device]:
    if what in machines.MACHINES:
        return machines.MACHINES[what]()
    if what.isascii() and what.isdigit() and int(what) <= machines.MOST:
        return machines.count(int(what))
    raise ConfigurationError(
        f"--simulate must be a number of GPUs from 0 to {machines.MOST}, a machine ({', '.join(machines.MACHINES)}) or "
        f"a YAML file (a path with a slash, or ending in .yaml), not {what!r}{did_you_mean(what, machines.MACHINES)}"
    )
