"""The GPUs of this host as one request sees them: what the backend answered, the mask, the filters, the choice."""

import os
import time

from externalresource.errors import DiscoveryError, NotEnoughDevicesError
from externalresource_gpu.choosing import candidates, mask, policies
from externalresource_gpu.script import dialects

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from externalresource.coordination import Claim, Process
    from externalresource_gpu.choosing.topology import Links
    from externalresource_gpu.device import Device
    from externalresource_gpu.script.dialects import More
    from externalresource_gpu.script.options import Options

MASK, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_FRESH = 1.0  # seconds for which an answer counts: what was waited for may have been given back because it broke


class Host:
    """The GPUs as one request sees them; `look` brings them up to date."""

    def __init__(self, options: "Options", backend: str, gpus: "Sequence[Device]", links: "Links") -> None:
        #: The one that answered.
        self.backend = backend
        self._options, self._links = options, links
        self._mask = None if options.ignore_mask else os.environ.get(MASK)
        self._wanted = candidates.Wanted(options.mig, options.min_memory, options.name, self._mask)
        self._claimable: list[Device] = []
        self.look(gpus)

    def look(self, gpus: "Sequence[Device]") -> None:
        """Take the GPUs as they are now."""
        #: A bound for several processes: each of them may use another of the instances that the mask names.
        self._shown = mask.visible(self._mask, gpus, one_instance=False)
        self._gpus, self._listed = gpus, candidates.listed(gpus, self._shown, self._wanted)
        self._add_what_appeared()
        self._now = {device.place: device for device in self._listed}
        used = {device.place: policies.foreign(device) for device in self._listed}
        #: Why a device looks used though nobody claimed it, by its place.
        self._used = {} if self._options.foreign_use == "ignore" else {where: how for where, how in used.items() if how}
        #: Whether devices could have been chosen, if it were known how they are by now.
        self.is_outdated = False
        self._looked = time.monotonic()

    def candidates(self) -> "list[Device]":
        """Return what may be handed out, in the order of the mask.

        Raises NotEnoughDevicesError if the host could never give enough, DiscoveryError if ordinals are wanted and not
        certain.
        """
        found = candidates.usable(self._listed, self._shown, self._options.amount)
        if self._options.relative:
            self._check_ordinals(found)
        return found

    def claimable(self) -> "list[Device]":
        """Return the candidates for a claim, to which `look` adds those that appear.

        NotEnoughDevicesError says so, if a run around this is why they are too few.
        """
        from externalresource.coordination import runs_around

        try:
            self._claimable = self.candidates()
        except NotEnoughDevicesError as error:
            if not runs_around():
                raise
            raise NotEnoughDevicesError(
                f"{error}; this is inside of `externalresource run`, and gets a share of that one's devices"
            ) from None
        return self._claimable

    def _add_what_appeared(self) -> None:
        """Add devices at places where none would do: not another one at the place of one that is gone."""
        if self._claimable and not self._options.relative:
            self._claimable += [
                device
                for device in candidates.usable(self._listed, self._shown, 0)
                if device.place not in {known.place for known in self._claimable}
            ]

    def choose(self, free: "Sequence[Device]", claims: "Sequence[Claim]", amount: int) -> "list[Device]":
        """Return the best of the free devices; NotEnoughDevicesError if too many are in use or do not work any more."""
        if self._options.wait and time.monotonic() - self._looked > _FRESH:
            self.is_outdated = True
            raise NotEnoughDevicesError(f"{amount} wanted, {len(free)} free; the driver is asked how they are by now")
        sound = [device for device in free if candidates.why_not_now(device, self._now) is None]
        if len(sound) < amount:
            raise NotEnoughDevicesError(
                f"{amount} wanted, {len(sound)} of {len(free)} free ones are still usable "
                f"({candidates.reasons_now(free, self._now)})"
            )
        return self._chosen(sound, claims, amount)

    def suits(self, device: "Device") -> bool:
        """Return whether a device would do, as far as it is known now."""
        excluded = self._options.foreign_use == "exclude" and device.place in self._used
        return not excluded and candidates.why_not_now(device, self._now) is None

    def answer(self, granted: "Sequence[Device]") -> str:
        """Return what goes to stdout for the devices that were granted."""
        return dialects.render(self._options.format, granted, self._ordinals(granted))

    def properties(self, granted: "Sequence[Device]") -> "list[dict[str, str]]":
        """Return what is known of each of the devices that were granted."""
        return dialects.properties(granted, self._ordinals(granted))

    def decision(self, granted: "Sequence[Device]", owner: "Process | None") -> str:
        """Return for the log file what was granted, and to whom, if it was claimed; and what is doubtful in that."""
        tokens = ",".join(device.token for device in granted) or "none"
        doubts = "".join(f"; {doubt}" for doubt in self.doubts(granted))
        if owner is None:
            return f"named {tokens} as {self.backend} sees them, without coordination{doubts}"
        return f"granted {tokens} as {self.backend} sees them to pid {owner.pid} ({owner.program}){doubts}"

    def doubts(self, granted: "Sequence[Device]") -> list[str]:
        """Return what may not be as whoever asked believes."""
        found = [mask.ambiguity(self._mask, self._gpus, os.environ.get(ORDER)), self._uses(granted)]
        if sum(device.mig_index is not None for device in granted) > 1:
            found.append("one process can use only one MIG instance: CUDA shows it the first")
        return [doubt for doubt in found if doubt]

    def listing(self) -> str:
        """Return all devices, with the reason why one is not handed out; or the host as a machine to simulate."""
        if self._options.format == "yaml":
            from externalresource_gpu.backends.simulated import recording

            return recording.render(self._gpus, self._links)
        return dialects.render(self._options.format, self._listed, self._more())

    def all_properties(self) -> "list[dict[str, str]]":
        """Return what is known of each device, with the reason why one is not handed out."""
        return dialects.properties(self._listed, self._more())

    def _chosen(self, free: "Sequence[Device]", claims: "Sequence[Claim]", amount: int) -> "list[Device]":
        """Return those that nobody uses, and of these what the policy prefers; the others only for want of them."""
        unused = [device for device in free if device.place not in self._used]
        if len(unused) >= amount:
            return self._select(unused, claims, amount)
        used = [device for device in free if device.place in self._used]
        if self._options.foreign_use == "exclude":
            raise NotEnoughDevicesError(
                f"{amount} wanted, {len(unused)} of {len(free)} free ones are not in use (--foreign-use exclude): "
                f"{self._uses(used)}"
            )
        return [*unused, *self._select(used, claims, amount - len(unused))]

    def _select(self, free: "Sequence[Device]", claims: "Sequence[Claim]", amount: int) -> "list[Device]":
        return policies.select(free, claims, amount, policy=self._options.policy, links=self._links, devices=self._gpus)

    def _uses(self, devices: "Sequence[Device]") -> str:
        used = [(device.place, self._used.get(device.place)) for device in devices]
        return "; ".join(f"GPU {place} is {how}" for place, how in used if how)

    def _ordinals(self, granted: "Sequence[Device]") -> "More":
        if not self._options.relative:
            return {}
        return {device.place: {"ordinal": str(mask.ordinal(device, self._shown))} for device in granted}

    def _more(self) -> "More":
        more = {place: {"in_use": used} for place, used in self._used.items()}
        if self._options.topology:
            from externalresource_gpu.choosing import topology

            for gpu, row in zip(self._gpus, topology.matrix(self._links, self._gpus), strict=True):
                more.setdefault(gpu.place, {})["links"] = " ".join(row)
        return more

    def _check_ordinals(self, found: "Sequence[Device]") -> None:
        """Raise DiscoveryError if it is not certain by which numbers CUDA knows these devices."""
        doubt = mask.ambiguity(self._mask, self._gpus, os.environ.get(ORDER), relative=True)
        if doubt is None and any(mask.ordinal(device, self._shown) is None for device in found):
            doubt = "CUDA shows a process one MIG instance only"
        if doubt is not None:
            raise DiscoveryError(f"--relative: CUDA's numbers are not known here, as {doubt}; use UUIDs, --format uuid")
