"""What one request asks of the backend. Nothing that costs is imported before `start` has started nvidia-smi."""

import os
import time

from externalresource.errors import DiscoveryError
from externalresource_gpu import backends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device
    from externalresource_gpu.host import Host
    from externalresource_gpu.script.options import Options

    class Create(Protocol):
        """Makes a backend, as `backends.create` does."""

        def __call__(
            self, name: str, simulate: str | None, /, *, topology: bool, processes: bool
        ) -> backends.Backend: ...


_BREATH, _REST = 1.0, 5  # seconds between two looks for what has appeared; and at least so many times what a look takes


class Question:
    """What is asked of the backend that `create` makes, and by it of the driver."""

    def __init__(self, options: "Options", create: "Create" = backends.create) -> None:
        self._options = options
        self._create_backend = create
        self._next = time.monotonic() + _BREATH
        self._backend = self._create(
            topology=options.topology or (options.amount > 1 and options.policy == "connected")
        )

    def start(self) -> None:
        """Begin to ask. DriverStuckError if somebody did before, was killed, and is still there."""
        self._check_stuck()
        self._backend.start()

    def host(self, deadline: float) -> "Host":
        """Return what the driver answers. DiscoveryError, if it does not before `deadline`."""
        from externalresource_gpu.host import Host  # while the driver answers

        gpus = self._devices(deadline)
        return Host(self._options, self._backend.name, gpus, self._links(deadline))

    def abandon(self) -> None:
        """End what `start` began: no child is left behind in somebody's process."""
        try:  # noqa: SIM105 - contextlib costs the script a millisecond
            self._backend.devices(time.monotonic())
        except DiscoveryError:
            pass

    def look_again(self, host: "Host", deadline: float, *, first: bool = False) -> None:
        """See what is usable and in use by now, if that matters and is not known; links stay as they are.

        Who is the `first` that waits also sees what has appeared. That the driver does not answer then ends no wait.
        """
        began = time.monotonic()
        if host.is_outdated:
            self._see(host, deadline)
        elif first and began >= self._next:
            try:  # noqa: SIM105 - contextlib costs the script a millisecond
                self._see(host, deadline)
            except DiscoveryError:
                pass
            self._next = time.monotonic() + max(_BREATH, _REST * (time.monotonic() - began))

    def _see(self, host: "Host", deadline: float) -> None:
        self._check_stuck()
        self._backend = self._create(topology=False)
        host.look(self._devices(min(deadline, time.monotonic() + self._options.timeout)))

    def _links(self, deadline: float) -> "Links":
        """Return how the GPUs are connected; nothing, if that takes too long while the GPUs themselves are known."""
        now = time.monotonic()
        try:
            return self._backend.links(now + (deadline - now) / 2)
        except DiscoveryError:
            return {}

    def _create(self, *, topology: bool) -> "backends.Backend":
        return self._create_backend(
            self._options.backend,
            self._options.simulate,
            topology=topology,
            processes=self._options.foreign_use != "ignore" or self._options.format == "yaml",
        )

    def _check_stuck(self) -> None:
        if os.path.lexists(f"{self._options.coordination_file}.stuck"):
            from externalresource_gpu.backends import stuck

            stuck.check(self._options.coordination_file)

    def _devices(self, deadline: float) -> "Sequence[Device]":
        try:
            return self._backend.devices(deadline)
        except DiscoveryError as error:
            from externalresource_gpu.backends import stuck

            if isinstance(error, stuck.DriverStuckError):
                stuck.remember(self._options.coordination_file, error.pid)
            raise
