"""The GPUs of this host as one request sees them: what the backend answers, the mask, the filters, the choice.

Nothing that costs is imported before `Question.start` has started nvidia-smi.
"""

import os
import time

from externalresource_gpu import backends
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
_FRESH = 2.0  # seconds for which an answer counts: what was waited for may have been given back because it broke


class Question:
    """What is asked of the backend, and by it of the driver."""

    def __init__(self, options: "Options") -> None:
        self._options = options
        self._backend = self._create(
            topology=options.topology or (options.amount > 1 and options.policy == "connected")
        )

    def start(self) -> None:
        """Begin to ask. DriverStuckError if somebody did before, was killed, and is still there."""
        self._check_stuck()
        self._backend.start()

    def host(self, deadline: float) -> "Host":
        """Return what the driver answers. DiscoveryError, if it does not before `deadline`."""
        gpus = self._devices(deadline)
        return Host(self._options, self._backend.name, gpus, self._links(deadline))

    def abandon(self) -> None:
        """End what `start` began: no child is left behind in somebody's process."""
        from externalresource.errors import DiscoveryError

        try:  # noqa: SIM105 - contextlib costs the script a millisecond
            self._backend.devices(time.monotonic())
        except DiscoveryError:
            pass

    def look_again(self, host: "Host", deadline: float) -> None:
        """See what is usable and in use by now, if that matters and is not known; links stay as they are."""
        if host.is_outdated:
            self._check_stuck()
            self._backend = self._create(topology=False)
            host.look(self._devices(min(deadline, time.monotonic() + self._options.timeout)))

    def _links(self, deadline: float) -> "Links":
        """Return how the GPUs are connected; nothing, if that takes too long while the GPUs themselves are known."""
        from externalresource.errors import DiscoveryError

        now = time.monotonic()
        try:
            return self._backend.links(now + (deadline - now) / 2)
        except DiscoveryError:
            return {}

    def _create(self, *, topology: bool) -> "backends.Backend":
        return backends.create(
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
        from externalresource.errors import DiscoveryError

        try:
            return self._backend.devices(deadline)
        except DiscoveryError as error:
            from externalresource_gpu.backends import stuck

            if isinstance(error, stuck.DriverStuckError):
                stuck.remember(self._options.coordination_file, error.pid)
            raise


class Host:
    """The answer, and what one request makes of it."""

    def __init__(self, options: "Options", backend: str, gpus: "Sequence[Device]", links: "Links") -> None:
        from externalresource_gpu.choosing import candidates
        from externalresource_gpu.choosing.choice import Choice

        #: The one that answered.
        self.backend = backend
        self._options, self._links = options, links
        self._mask = None if options.ignore_mask else os.environ.get(MASK)
        self._wanted = candidates.Wanted(options.mig, options.min_memory, options.name, self._mask)
        self._choice = Choice(gpus, links, options.policy, options.foreign_use)
        self.look(gpus)

    def look(self, gpus: "Sequence[Device]") -> None:
        """Take the GPUs as they are now."""
        from externalresource_gpu.choosing import candidates, mask

        #: A bound for several processes: each of them may use another of the instances that the mask names.
        self._shown = mask.visible(self._mask, gpus, one_instance=False)
        self._gpus, self._listed = gpus, candidates.listed(gpus, self._shown, self._wanted)
        self._now = {device.place: device for device in self._listed}
        self._choice.look(gpus)
        #: Whether devices could have been chosen, if it were known how they are by now.
        self.is_outdated = False
        self._looked = time.monotonic()

    def candidates(self) -> "list[Device]":
        """Return what may be handed out, in the order of the mask.

        Raises NotEnoughDevicesError if the host could never give enough, DiscoveryError if ordinals are wanted and not
        certain.
        """
        from externalresource_gpu.choosing import candidates

        found = candidates.usable(self._listed, self._shown, self._options.amount)
        if self._options.relative:
            self._check_ordinals(found)
        return found

    def claimable(self) -> "list[Device]":
        """Return the candidates for a claim.

        NotEnoughDevicesError says so, if a run around this is why they are too few.
        """
        from externalresource.coordination import runs_around
        from externalresource.errors import NotEnoughDevicesError

        try:
            return self.candidates()
        except NotEnoughDevicesError as error:
            if not runs_around():
                raise
            raise NotEnoughDevicesError(
                f"{error}; this is inside of `externalresource run`, and gets a share of that one's devices"
            ) from None

    def choose(self, free: "Sequence[Device]", claims: "Sequence[Claim]", amount: int) -> "list[Device]":
        """Return the best of the free devices; NotEnoughDevicesError if too many are in use or do not work any more."""
        from externalresource.errors import NotEnoughDevicesError
        from externalresource_gpu.choosing import candidates

        if self._options.wait and time.monotonic() - self._looked > _FRESH:
            self.is_outdated = True
            raise NotEnoughDevicesError(f"{amount} wanted, {len(free)} free; the driver is asked how they are by now")
        sound = [device for device in free if candidates.why_not_now(device, self._now) is None]
        if len(sound) < amount:
            raise NotEnoughDevicesError(
                f"{amount} wanted, {len(sound)} of {len(free)} free ones are still usable "
                f"({candidates.reasons_now(free, self._now)})"
            )
        return self._choice(sound, claims, amount)

    def suits(self, device: "Device") -> bool:
        """Return whether a device would do, as far as it is known now."""
        from externalresource_gpu.choosing import candidates

        return candidates.why_not_now(device, self._now) is None and self._choice.suits(device)

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
        from externalresource_gpu.choosing import mask

        found = [mask.ambiguity(self._mask, self._gpus, os.environ.get(ORDER)), self._choice.reasons(granted)]
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

    def _ordinals(self, granted: "Sequence[Device]") -> "More":
        from externalresource_gpu.choosing import mask

        if not self._options.relative:
            return {}
        return {device.place: {"ordinal": str(mask.ordinal(device, self._shown))} for device in granted}

    def _more(self) -> "More":
        more = {place: {"in_use": used} for place, used in self._choice.used.items()}
        if self._options.topology:
            from externalresource_gpu.choosing import topology

            for gpu, row in zip(self._gpus, topology.matrix(self._links, self._gpus), strict=True):
                more.setdefault(gpu.place, {})["links"] = " ".join(row)
        return more

    def _check_ordinals(self, found: "Sequence[Device]") -> None:
        """Raise DiscoveryError if it is not certain by which numbers CUDA knows these devices."""
        from externalresource.errors import DiscoveryError
        from externalresource_gpu.choosing import mask

        doubt = mask.ambiguity(self._mask, self._gpus, os.environ.get(ORDER), relative=True)
        if doubt is None and any(mask.ordinal(device, self._shown) is None for device in found):
            doubt = "CUDA shows a process one MIG instance only"
        if doubt is not None:
            raise DiscoveryError(f"--relative: CUDA's numbers are not known here, as {doubt}; use UUIDs, --format uuid")
