"""GPUs that are not there, for trying things out and for tests on any machine: docs/simulate.md is for its users."""

import os

from externalresource.api import replace
from externalresource.errors import ConfigurationError, DiscoveryError, did_you_mean
from externalresource_gpu.backends.simulated import made_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource_gpu.backends.query import Query
    from externalresource_gpu.backends.simulated.machine_file import Machine
    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device

_DIGITS = 9  # int() refuses very long ones with an error of its own


class Simulated:
    """Answers with the GPUs of a number, a machine or a file. ConfigurationError if it is none of them."""

    name = "simulated"

    def __init__(self, what: str | None, *, topology: bool = False, processes: bool = False) -> None:
        self._number, self._path, self._seed = _meant(what or "")
        self._topology, self._processes = topology, processes
        self._begun: tuple[Machine, Query | None] | None = None
        self._links: Links = {}

    def start(self) -> None:
        """Begin to ask the driver of a machine or a file; what is wrong with the file is told by `devices`."""
        if self._number is None:
            try:
                self._begun = self._begin()
            except DiscoveryError:
                self._begun = None

    def devices(self, deadline: float) -> "list[Device]":
        if self._number is None:
            found = self._ask(deadline)
        else:
            found = made_up.count(self._number)
            self._links = made_up.count_links(self._number) if self._topology else {}
        if self._processes:
            return found
        return [device if device.processes is None else replace(device, processes=None) for device in found]

    def links(self, deadline: float) -> "Links":  # noqa: ARG002 - they are known with the devices
        return dict(self._links)

    def _begin(self) -> "tuple[Machine, Query | None]":
        from externalresource_gpu.backends.simulated import machine_file

        machine = machine_file.read(self._path, self._seed)
        return machine, machine.driver.ask()

    def _ask(self, deadline: float) -> "list[Device]":
        machine, query = self._begun or self._begin()
        self._begun = None  # the next look is a new one: the file may have changed
        from externalresource_gpu.backends.simulated import driver

        driver.check(query, deadline)
        self._links = machine.links if self._topology else {}
        return list(machine.devices)


def _meant(what: str) -> tuple[int | None, str, str]:
    """Return the number, or None, a file and what to make its UUIDs up from.

    A number or a machine goes before a file of that name in the current folder.
    """
    if "/" in what or what.endswith((".yaml", ".yml")):
        return None, what, os.path.realpath(what)
    if what.isascii() and what.isdigit() and len(what) <= _DIGITS and int(what) <= made_up.MOST:
        return int(what), "", ""
    if what and os.path.isfile(made_up.path(what)):
        return None, made_up.path(what), what
    if os.path.isfile(what):
        return None, what, os.path.realpath(what)
    known = made_up.names()
    raise ConfigurationError(
        f"--simulate must be a number of GPUs from 0 to {made_up.MOST}, a machine ({', '.join(known)}) or a "
        f"YAML file (a path with a slash, or ending in .yaml), not {what!r}{did_you_mean(what, known)}"
    )
