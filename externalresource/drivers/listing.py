"""The devices of a driver as one request sees them, also while that waits: they break, appear and get other names."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from externalresource.coordination import Claim, first
from externalresource.drivers.device import Device
from externalresource.errors import ExternalResourceError, NotEnoughDevicesError, too_few

_FRESH = 1.0  # seconds for which an answer counts: what was waited for may have been given back because it broke
_BREATH, _REST = 1.0, 5  # seconds between two looks for what has appeared; and at least so many times what a look takes
_GONE = "it is not there any more"


class Listing:
    """What a driver has enumerated. A device is known by its UUID, and by its index only if it has none.

    `enumerate_devices` is asked again, each time with a deadline, if the request `waits`.
    """

    def __init__(
        self, device_class: str, enumerate_devices: Callable[[float], list[Device]], deadline: float, *, waits: bool
    ) -> None:
        self._class, self._enumerate, self._waits = device_class, enumerate_devices, waits
        #: As they were last seen. Those that appear are added, and those that are gone stay, as unusable.
        self.devices = enumerate_devices(deadline)
        #: Whether devices could have been chosen, if it were known how they are by now.
        self._is_outdated = False
        self._seen = self._tried = time.monotonic()
        self._rest = _BREATH

    def claimable(self, amount: int) -> list[Device]:
        """Return what may be claimed; NotEnoughDevicesError if there is too little, and waiting does not help."""
        if amount > len(self.devices):
            raise too_few(amount, len(self.devices))
        if self._waits:  # what is not usable now may be so once its owner is gone
            return self.devices
        usable = [device for device in self.devices if self.suits(device)]
        if amount > len(usable):
            raise NotEnoughDevicesError(
                f"{amount} wanted, only {len(usable)} of {len(self.devices)} are usable ({self._reasons(self.devices)})"
            )
        return usable

    def suits(self, device: Device) -> bool:
        """Return whether a device of this listing would do, as far as it is known."""
        return device.unusable is None

    def choose(self, free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        """Return the first of the free devices that would do; NotEnoughDevicesError if too few do, or none is fresh."""
        suitable = [device for device in free if self.suits(device)]
        if len(suitable) < amount:
            raise NotEnoughDevicesError(
                f"{amount} wanted, {len(suitable)} of {len(free)} free ones are usable ({self._reasons(free)})"
            )
        if self._waits and time.monotonic() - self._seen > _FRESH:
            self._is_outdated = True
            raise NotEnoughDevicesError(f"{amount} wanted, {len(free)} free; the driver is asked how they are by now")
        return first(suitable, claims, amount, self.devices)

    def look_again(self, deadline: float, *, is_first: bool) -> None:
        """See how the devices are by now, if that matters. That the driver fails meanwhile ends no wait.

        Only who is the first that waits sees what has appeared or is usable again, and looks for that: whoever stands
        behind it would take it.
        """
        began = time.monotonic()
        rest = _FRESH if self._is_outdated else self._rest
        if not (self._is_outdated or is_first) or began - self._tried < rest:
            return
        try:
            found = self._enumerate(deadline)
        except ExternalResourceError:
            pass  # what was seen before is too old to be handed out
        else:
            self._see(found, gains=is_first)
        self._tried = time.monotonic()
        self._rest = max(_BREATH, _REST * (self._tried - began))

    def _see(self, found: Iterable[Device], *, gains: bool) -> None:
        now = {device.uuid or device.index: device for device in found}
        for place, before in enumerate(self.devices):
            after = now.pop(before.uuid or before.index, None) or replace(before, unusable=_GONE)
            if after != before and (gains or before.unusable is None or after.unusable is not None):
                self.devices[place] = after
        if gains:
            self.devices += now.values()
        self._is_outdated = False
        self._seen = time.monotonic()

    def _reasons(self, devices: Iterable[Device]) -> str:
        return "; ".join(f"{self._class} {device.index}: {device.unusable}" for device in devices if device.unusable)
