"""A driver made of a function that enumerates devices: all else is the same for every device, and stands here."""

import inspect
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from externalresource.coordination import Claim, Coordination, Holder, Process, first
from externalresource.coordination.own_claims import Grants
from externalresource.drivers import options as option_parser
from externalresource.drivers.child import LONGEST
from externalresource.drivers.containment import answered, variables
from externalresource.drivers.contract import ExternalResourceDriver, ExternalResourceInfo, hookimpl
from externalresource.drivers.device import Device, info_of
from externalresource.drivers.infos import DeviceInfo, order
from externalresource.drivers.listing import Listing
from externalresource.drivers.options import Option
from externalresource.errors import (
    ConfigurationError,
    DiscoveryError,
    PluginError,
    warn,
)

_ADVICE = "; see its option timeout"
_OWN_SHARE = 0.9  # of the time is for the enumeration itself: what it says then comes before our own verdict

#: A driver's function; that of a DeviceDriver gets only the time when it must have given up.
Enumerating = Callable[..., Iterable[Device]]
#: Makes the variables of a process of those that its devices have, joined by commas.
Completing = Callable[[Mapping[str, str]], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every driver has that is made here."""

    enable_coordination_mode: bool = False
    coordination_file: str | None = None
    #: Seconds in the queue for devices that others hold.
    wait: float = 0.0
    #: Seconds for the enumeration and the lock together.
    timeout: float = 9.0

    def __post_init__(self) -> None:
        if self.coordination_file is not None and not os.path.isabs(self.coordination_file):
            raise ValueError(f"option 'coordination-file' must be an absolute path, not {self.coordination_file!r}")
        if not 0 <= self.wait <= LONGEST:
            raise ValueError(f"option 'wait' must be a number of seconds from 0 to {LONGEST:g}, not {self.wait:g}")
        if not 0 < self.timeout <= LONGEST:
            raise ValueError(f"option 'timeout' must be a number of seconds up to {LONGEST:g}, not {self.timeout:g}")


class DriverFactory:
    """The plugin: makes a driver of the options."""

    def __init__(
        self, device_class: str, enumerate_devices: Enumerating, options: Any, environment: Completing
    ) -> None:
        self.device_class = device_class
        self.__doc__ = enumerate_devices.__doc__
        self.__module__ = enumerate_devices.__module__
        self._enumerate = enumerate_devices
        self._environment = environment
        self._kinds = [Common] if options is None else [options, Common]

    @property
    def options(self) -> list[Option]:
        """Return its own options, and those that every driver has that is made here."""
        file = _default_file(self.device_class)
        return [
            replace(option, default=file) if option.name == "coordination-file" else option
            for kind in self._kinds
            for option in option_parser.describe(kind)
        ]

    @hookimpl
    def create_external_resource_driver(self, options: Mapping[str, str]) -> "DeviceDriver":
        """Return a driver. ConfigurationError for an option that is unknown, missing or wrong."""
        who = f"the {self.device_class} driver"
        *own, common = option_parser.parse(options, self._kinds, who)
        return DeviceDriver(self.device_class, self._enumerator(own), common, self._environment)

    def _enumerator(self, own: Sequence[Any]) -> Enumerating:
        enumerate_devices = self._enumerate
        if "deadline" in inspect.signature(enumerate_devices).parameters:
            return lambda deadline: enumerate_devices(*own, deadline=deadline)
        return lambda _: enumerate_devices(*own)


def driver(
    device_class: str, options: type | None = None, *, environment: Completing = dict
) -> Callable[[Enumerating], DriverFactory]:
    """Make a plugin of a function that returns all devices of a class that this host has.

    `options` is a dataclass of the driver's own options; the function is called with an instance of it, else without an
    argument. It may take its time, print nothing, and raise DiscoveryError if it cannot tell what is here. One with a
    parameter `deadline` is told when (of `time.monotonic`) it must have given up, which one that waits needs.
    `environment` is for variables that are more than the values of all devices with commas between: it is called with
    those, has the time of the option `timeout`, and returns what the process gets. For a process that is to use no
    device they are empty, or missing where no device was seen yet: what it returns then must hide all.
    """
    return lambda enumerate_devices: DriverFactory(device_class, enumerate_devices, options, environment)


class DeviceDriver(ExternalResourceDriver):
    """Hands out the devices that a function enumerates."""

    def __init__(
        self, device_class: str, enumerate_devices: Enumerating, options: Common, environment: Completing
    ) -> None:
        self._class = device_class
        self._enumerate = enumerate_devices
        self._options = options
        self._environment = environment
        path = options.coordination_file or _default_file(device_class)
        self._grants = Grants(Coordination(path, device_class, pause=self._pause))
        self.coordination_file = path if options.enable_coordination_mode else None
        self.wait = options.wait
        self._listing: Listing | None = None
        self._until = 0.0
        self._told = False

    def retrieve_resource_info(self, amount: int) -> set[ExternalResourceInfo]:
        """Return `amount` devices for this process. NotEnoughDevicesError says why there are not so many."""
        if amount < 1:
            raise ConfigurationError(f"the amount must be a positive integer, not {amount}")
        deadline = time.monotonic() + self._options.timeout
        coordinated = self._options.enable_coordination_mode
        waits = coordinated and self._options.wait > 0
        self._listing = listing = Listing(self._class, self._enumerated, deadline, waits=waits)
        devices = listing.claimable(amount)
        chosen = (
            self._claim(listing, devices, amount, deadline)
            if coordinated
            else first(devices, (), amount, listing.devices)
        )
        return {info_of(device) for device in chosen}

    def devices(self) -> list[ExternalResourceInfo]:
        """Return all devices of this host; one that must not be handed out has the property `unusable`."""
        return [info_of(device) for device in self._enumerated(time.monotonic() + self._options.timeout)]

    def environment(self, infos: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
        """Return the variables for a process that uses exactly these devices, in the order of their indices.

        For a process that is to use none they are empty, as far as it is known which ones the devices have. PluginError
        if a device has none: such a process could not tell which devices are its own.
        """
        whose = f"the environment of the {self._class} driver"
        return answered(
            lambda: variables(self._environment(self._joined(infos)), whose),
            time.monotonic() + self._options.timeout,
            failed=f"{whose} failed",
            late=f"{whose} was not made",
            advice=_ADVICE,
        )

    def held(self, process: Process | None = None) -> Collection[Claim]:
        return self._grants.coordination.held(process)

    def drop(self, which: Callable[[Claim, Holder], bool]) -> Collection[tuple[Claim, Holder]]:
        return self._grants.coordination.drop(which)

    def close(self) -> None:
        self._grants.close()

    def keep_over_exec(self) -> Collection[str]:
        return self._grants.keep_over_exec()

    def _joined(self, infos: Collection[ExternalResourceInfo]) -> dict[str, str]:
        seen = [] if infos or self._listing is None else self._listing.devices
        found: dict[str, list[str]] = {name: [] for device in seen for name in device.environment}
        for info in order(infos):
            variables = info.environment if isinstance(info, DeviceInfo) else {}
            if not variables:
                raise PluginError(f"the {self._class} driver sets no variables for {info.get_property('index')}")
            for name, value in variables.items():
                found.setdefault(name, []).append(value)
        return {name: ",".join(dict.fromkeys(values)) for name, values in found.items()}

    def _claim(self, listing: Listing, devices: Sequence[Device], amount: int, deadline: float) -> Sequence[Device]:
        self._told = False
        self._until = deadline + self._options.wait
        return self._grants.claim(
            devices,
            amount,
            marked=self.marked,
            choose=listing.choose,
            suits=listing.suits,
            deadline=deadline,
            wait=self._options.wait,
            among=listing.devices,
        )

    def _pause(self, seconds: float, reason: str) -> None:
        """Wait, say once for whom, and see what has become of the devices meanwhile."""
        if self.on_wait is not None:
            self.on_wait(reason)
        elif not self._told:
            self._told = True
            warn(f"waiting for {self._class}: {reason}")
        time.sleep(seconds)
        if self._listing is not None:
            deadline = min(self._until, time.monotonic() + self._options.timeout)
            self._listing.look_again(deadline, is_first=self._grants.coordination.is_first)

    def _enumerated(self, deadline: float) -> list[Device]:
        own = deadline - (1 - _OWN_SHARE) * self._options.timeout
        found = answered(
            lambda: list(self._enumerate(own)),
            deadline,
            failed=f"the {self._class} driver failed",
            late=f"the {self._class} driver did not enumerate its devices",
            advice=_ADVICE,
            kind=DiscoveryError,
        )
        names: set[str] = set()
        for device in found:
            if not isinstance(device, Device) or not device.index or not isinstance(device.index, str):
                raise DiscoveryError(
                    f"the {self._class} driver enumerated {device!r}, which is no Device with an index"
                )
            for name in {device.index, device.uuid or device.index}:
                if name in names:
                    raise DiscoveryError(f"the {self._class} driver enumerated two devices called {name!r}")
                names.add(name)
        self._check_environments(found)
        return found

    def _check_environments(self, found: Iterable[Device]) -> None:
        """Raise DiscoveryError for two devices that one process would be told of by one and the same environment."""
        known: dict[frozenset[tuple[str, str]], Device] = {}
        for device in found:
            other = known.setdefault(frozenset(device.environment.items()), device)
            if other is not device and device.environment:
                raise DiscoveryError(
                    f"the {self._class} driver enumerated {other.index!r} and {device.index!r} with the same "
                    f"environment ({', '.join(map('='.join, device.environment.items()))}): a process could not tell "
                    "which of the two is its own"
                )


def _default_file(device_class: str) -> str:
    return f"/var/tmp/externalresource-{device_class}-coordination"  # noqa: S108 - what is opened there is checked
