"""Which devices a set of claims takes: a pure question of names."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from externalresource.coordination.holders import Claim
from externalresource.errors import CoordinationError, DiscoveryError, NotEnoughDevicesError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    from externalresource.coordination.holders import Name

    D = TypeVar("D", bound="Claimable")
else:
    Protocol = object


class Claimable(Protocol):
    """A device that can be claimed. Its UUID identifies it where there is one, else its token."""

    @property
    def token(self) -> str: ...
    @property
    def uuid(self) -> str | None: ...
    @property
    def parent_uuid(self) -> str | None:
        """The device of which this is a slice; the two exclude each other."""

    @property
    def parent_token(self) -> str | None: ...


def free(devices: "Sequence[D]", claims: Sequence[Claim], wholes: "Wholes") -> "list[D]":
    """Return the devices that no claim takes."""
    taken = _Taken(claims, wholes)
    return [device for device in devices if not taken.has(device)]


def takes(claim: Claim, devices: Iterable[Claimable], wholes: "Wholes") -> bool:
    """Return whether a claim takes any of the devices."""
    taken = _Taken([claim], wholes)
    return any(map(taken.has, devices))


def taking(claims: Iterable[Claim], devices: Iterable[Claimable], wholes: "Wholes") -> list[Claim]:
    """Return the claims that take any of the devices, in their order."""
    named: dict[str, list[Claimable]] = {}
    for device in devices:
        for name in _names(device, wholes):
            named.setdefault(name, []).append(device)

    def alike(claim: Claim) -> Iterator[Claimable]:  # all of 1,024 devices for all of 1,024 claims would be a million
        return chain.from_iterable(named.get(name, ()) for name in _names(claim, wholes))

    return [claim for claim in claims if takes(claim, alike(claim), wholes)]


def same(claim: Claim, device: Claimable) -> bool:
    """Return whether a claim is for this very device."""
    return claim.uuid == device.uuid if claim.uuid and device.uuid else claim.token == device.token


def named(devices: "Sequence[D]", claims: Iterable[Claim]) -> "list[D]":
    """Return the devices of which each is claimed as such: not a slice of it, nor what it is a slice of."""
    found = _Named([(claim.uuid, claim.token) for claim in claims])
    return [device for device in devices if found.has(device.uuid, device.token)]


def first(
    free: "Sequence[D]", claims: Sequence[Claim], amount: int, among: Iterable[Claimable] | None = None
) -> "Sequence[D]":
    """Return the first `amount` of the free devices, none a part of another; NotEnoughDevicesError if too few are.

    `among` are all devices, by which what each is a part of is followed upwards; without it the free ones.
    """
    del claims
    wholes = Wholes(free if among is None else among)
    wholes.check()
    return apart(free, amount, wholes)


def apart(devices: "Sequence[D]", amount: int, wholes: "Wholes") -> "Sequence[D]":
    """Return the first `amount` of which none is a part of another; NotEnoughDevicesError if there are fewer."""
    if not wholes.has_parts:
        return devices[:amount]
    parted = _Taken(devices, wholes).parted
    chosen: list[D] = []
    for order in (devices, sorted(devices, key=lambda device: parted.has(device.uuid, device.token))):  # parts are more
        chosen, taken = [], _Taken([], wholes)
        for device in order:
            if not taken.excludes(device):
                chosen.append(device)
                taken.add(device)
                if len(chosen) == amount:
                    return chosen
    raise NotEnoughDevicesError(f"{amount} wanted, {len(chosen)} to be had: a device and its slices exclude each other")


def check_choice(chosen: Sequence[Claimable], offered: Sequence[Claimable], amount: int, wholes: "Wholes") -> None:
    """Raise CoordinationError unless a choice, which may be a stranger's, gives no device twice."""
    strange = {id(device) for device in chosen} - {id(device) for device in offered}
    different = {device.uuid or device.token for device in chosen}
    taken = _Taken(chosen, wholes)
    if strange or not len(different) == len(chosen) == amount or any(map(taken.excludes, chosen)):
        raise CoordinationError(
            f"nothing is granted: the driver must choose {amount} different ones of the free devices, none of them a "
            f"slice of another, not {', '.join(device.token for device in chosen) or 'none'}"
        )


class Wholes:
    """What each device is a part of, all the way up, as far as it says so itself, or these devices say it."""

    def __init__(self, devices: Iterable[Claimable]) -> None:
        self._devices = devices if isinstance(devices, list) else [*devices]
        self.read_again()

    def read_again(self) -> None:
        """See the list of devices as it is by now: whoever waits may add some, or exchange them."""
        self._parts = [device for device in self._devices if device.parent_uuid or device.parent_token]
        self._known: dict[int, tuple[Claimable, list[Name]]] = {}
        self._named: dict[str, list[Claimable]] = {}
        for part in self._parts:
            for name in filter(None, {part.uuid, part.token}):
                self._named.setdefault(name, []).append(part)

    @property
    def has_parts(self) -> bool:
        """Whether any of these devices is a part of another one."""
        return bool(self._parts)

    def of(self, device: Claimable) -> "list[Name]":
        """Return what a device is a part of, what that is a part of, and so on."""
        known = self._known.get(id(device))
        if known is not None:
            return known[1]
        found = dict.fromkeys(_above(device))
        left = [*found]
        while left:
            for name in chain.from_iterable(map(_above, self._called(left.pop()))):
                if name not in found:
                    found[name] = None
                    left.append(name)
        self._known[id(device)] = device, [*found]  # with the device, lest another one has that id later
        return [*found]

    def check(self) -> None:
        """Raise DiscoveryError if one of these devices is a part of itself."""
        for part in self._parts:
            if any(_is(name, part) for name in self.of(part)):
                above = " or ".join(uuid or token or "" for uuid, token in _above(part))
                raise DiscoveryError(
                    f"the driver's device {part.token} is a part of {above}, and so of itself: correct its parent_uuid "
                    "and parent_token"
                )

    def _called(self, name: "Name") -> list[Claimable]:
        """Return the parts that may be meant by a name."""
        return [part for word in name for part in self._named.get(word or "", ()) if _is(name, part)]


def _above(device: Claimable) -> "list[Name]":
    """Return what a device says itself that it is a part of: a claim says all, a driver's device the next."""
    if not (device.parent_uuid or device.parent_token):
        return []
    return [(device.parent_uuid, device.parent_token), *getattr(device, "ancestors", ())]


def _is(name: "Name", device: Claimable) -> bool:
    uuid, token = name
    if uuid and device.uuid:
        return uuid == device.uuid
    return bool(({uuid, token} & {device.uuid, device.token}) - {None, ""})


def _names(named: Claimable, wholes: Wholes) -> set[str]:
    return {name for name in chain((named.uuid, named.token), *wholes.of(named)) if name}


class _Named:
    """Devices by UUID where both sides know one, else by token: a container's 0 is another GPU than the host's."""

    def __init__(self, names: "Iterable[Name]") -> None:
        pairs = [*names]
        self._uuids = {uuid for uuid, _ in pairs if uuid}
        self._tokens = {token for _, token in pairs if token}
        self._bare = {token for uuid, token in pairs if token and not uuid}  # may be a UUID, too

    def add(self, uuid: str | None, token: str | None) -> None:
        if uuid:
            self._uuids.add(uuid)
        elif token:
            self._bare.add(token)
        if token:
            self._tokens.add(token)

    def has(self, uuid: str | None, token: str | None) -> bool:
        if not uuid:
            return token in self._tokens or token in self._uuids
        return uuid in self._uuids or uuid in self._bare or token in self._bare


class _Taken:
    """What claims, or devices to be claimed, take: the same devices, their parts, and what they are parts of."""

    def __init__(self, claims: Sequence[Claimable], wholes: Wholes) -> None:
        self._wholes = wholes
        self._devices = _Named([(claim.uuid, claim.token) for claim in claims])
        parts = [claim for claim in claims if claim.parent_uuid or claim.parent_token]
        #: What has parts among them.
        self.parted = _Named([name for claim in parts for name in wholes.of(claim)])

    def add(self, device: Claimable) -> None:
        self._devices.add(device.uuid, device.token)
        for name in self._wholes.of(device):
            self.parted.add(*name)

    def has(self, device: Claimable) -> bool:
        return self._devices.has(device.uuid, device.token) or self.excludes(device)

    def excludes(self, device: Claimable) -> bool:
        """Whether it is not claimed itself, but is a part of what is, or has a part that is."""
        above = self._wholes.of(device) if device.parent_uuid or device.parent_token else ()
        return any(self._devices.has(*name) for name in above) or self.parted.has(device.uuid, device.token)
