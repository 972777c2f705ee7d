"""What a request takes of the free devices: those that nobody uses, and of these what the policy prefers. Pure."""

from externalresource.errors import NotEnoughDevicesError
from externalresource_gpu.choosing import policies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from externalresource.coordination import Claim
    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device


class Choice:
    """Chooses under the lock; what it knows of the GPUs is brought up to date by `look`."""

    def __init__(self, gpus: "Sequence[Device]", links: "Links", policy: str, foreign_use: str) -> None:
        self._links, self._policy, self._foreign_use = links, policy, foreign_use
        self.look(gpus)

    def look(self, gpus: "Sequence[Device]") -> None:
        """Take the GPUs as they are now."""
        self._gpus = gpus
        used = {} if self._foreign_use == "ignore" else foreign_use(gpus)
        #: Why a device looks used, by its place.
        self.used: Mapping[str, str] = used

    def __call__(self, free: "Sequence[Device]", claims: "Sequence[Claim]", amount: int) -> "list[Device]":
        """Return `amount` of the free devices; NotEnoughDevicesError if too many of them are in use."""
        unused = [device for device in free if device.place not in self.used]
        if len(unused) >= amount:
            return self._select(unused, claims, amount)
        if self._foreign_use == "exclude":
            raise NotEnoughDevicesError(
                f"{amount} wanted, {len(unused)} of {len(free)} free ones are not in use (--foreign-use exclude): "
                f"{self.reasons([device for device in free if device.place in self.used])}"
            )
        used = [device for device in free if device.place in self.used]
        return [*unused, *self._select(used, claims, amount - len(unused))]

    def suits(self, device: "Device") -> bool:
        """Return whether a device would do now: one that is in use is never taken where that excludes it."""
        return self._foreign_use != "exclude" or device.place not in self.used

    def reasons(self, devices: "Sequence[Device]") -> str:
        """Return why these devices look used though nobody claimed them; empty if they do not."""
        return "; ".join(f"GPU {device.place} is {used}" for device in devices if (used := self.used.get(device.place)))

    def _select(self, free: "Sequence[Device]", claims: "Sequence[Claim]", amount: int) -> "list[Device]":
        return policies.select(free, claims, amount, policy=self._policy, links=self._links, devices=self._gpus)


def foreign_use(gpus: "Sequence[Device]") -> dict[str, str]:
    """Return why devices look used, by their place."""
    everything = [device for gpu in gpus for device in (gpu, *gpu.instances)]
    return {device.place: used for device in everything if (used := policies.foreign(device))}
