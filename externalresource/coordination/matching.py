"""Which devices a set of claims takes: a pure question of names."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from externalresource.coordination.holders import Claim
from externalresource.errors import CoordinationError, NotEnoughDevicesError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeVar

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


def free(devices: "Sequence[D]", claims: Sequence[Claim]) -> "list[D]":
    """Return the devices that no claim takes."""
    taken = _Taken(claims)
    return [device for device in devices if not taken.has(device)]


def takes(claim: Claim, devices: Iterable[Claimable]) -> bool:
    """Return whether a claim takes any of the devices."""
    taken = _Taken([claim])
    return any(map(taken.has, devices))


def taking(claims: Iterable[Claim], devices: Iterable[Claimable]) -> list[Claim]:
    """Return the claims that take any of the devices, in their order."""
    named: dict[str, list[Claimable]] = {}
    for device in devices:
        for name in _names(device):
            named.setdefault(name, []).append(device)

    def alike(claim: Claim) -> Iterator[Claimable]:  # all of 1,024 devices for all of 1,024 claims would be a million
        return chain.from_iterable(named.get(name, ()) for name in _names(claim))

    return [claim for claim in claims if takes(claim, alike(claim))]


def same(claim: Claim, device: Claimable) -> bool:
    """Return whether a claim is for this very device."""
    return claim.uuid == device.uuid if claim.uuid and device.uuid else claim.token == device.token


def named(devices: "Sequence[D]", claims: Iterable[Claim]) -> "list[D]":
    """Return the devices of which each is claimed as such: not a slice of it, nor what it is a slice of."""
    found = _Named([(claim.uuid, claim.token) for claim in claims])
    return [device for device in devices if found.has(device.uuid, device.token)]


def apart(devices: "Sequence[D]", amount: int) -> "Sequence[D]":
    """Return the first `amount` of which none is a slice of another; NotEnoughDevicesError if there are fewer."""
    parts = [device for device in devices if device.parent_uuid or device.parent_token]
    if not parts:
        return devices[:amount]
    sliced = {id(device) for device in devices if any(_is_slice(part, device) for part in parts)}
    chosen: list[D] = []
    for order in (devices, sorted(devices, key=lambda device: id(device) in sliced)):  # its slices may be more
        chosen = []
        for device in order:
            if not any(_is_slice(device, other) or _is_slice(other, device) for other in chosen):
                chosen.append(device)
                if len(chosen) == amount:
                    return chosen
    raise NotEnoughDevicesError(f"{amount} wanted, {len(chosen)} to be had: a device and its slices exclude each other")


def check_choice(chosen: Sequence[Claimable], offered: Sequence[Claimable], amount: int) -> None:
    """Raise CoordinationError unless a choice, which may be a stranger's, gives no device twice."""
    strange = {id(device) for device in chosen} - {id(device) for device in offered}
    different = {device.uuid or device.token for device in chosen}
    taken = _Taken(chosen)
    if strange or not len(different) == len(chosen) == amount or any(map(taken.excludes, chosen)):
        raise CoordinationError(
            f"nothing is granted: the driver must choose {amount} different ones of the free devices, none of them a "
            f"slice of another, not {', '.join(device.token for device in chosen) or 'none'}"
        )


def _is_slice(part: Claimable, device: Claimable) -> bool:
    if part.parent_uuid and device.uuid:
        return part.parent_uuid == device.uuid
    parents = {part.parent_uuid, part.parent_token} - {None}
    return not parents.isdisjoint((device.uuid, device.token))


def _names(named: Claimable) -> set[str]:
    return {name for name in (named.uuid, named.token, named.parent_uuid, named.parent_token) if name}


class _Named:
    """Devices by UUID where both sides know one, else by token: a container's 0 is another GPU than the host's."""

    def __init__(self, pairs: Sequence[tuple[str | None, str | None]]) -> None:
        self._uuids = {uuid for uuid, _ in pairs if uuid}
        self._tokens = {token for _, token in pairs if token}
        self._bare = {token for uuid, token in pairs if token and not uuid}  # may be a UUID, too

    def has(self, uuid: str | None, token: str | None) -> bool:
        if not uuid:
            return token in self._tokens or token in self._uuids
        return uuid in self._uuids or uuid in self._bare or token in self._bare


class _Taken:
    """What claims, or devices to be claimed, take: the same devices, their slices, and what they are slices of."""

    def __init__(self, claims: Sequence[Claimable]) -> None:
        slices = [claim for claim in claims if claim.parent_uuid or claim.parent_token]
        self._devices = _Named([(claim.uuid, claim.token) for claim in claims])
        self._parents = _Named([(claim.parent_uuid, claim.parent_token) for claim in slices])

    def has(self, device: Claimable) -> bool:
        return self._devices.has(device.uuid, device.token) or self.excludes(device)

    def excludes(self, device: Claimable) -> bool:
        """Whether it is not claimed itself, but is a slice of what is, or has a slice that is."""
        parent = device.parent_uuid, device.parent_token
        return self._devices.has(*parent) or self._parents.has(device.uuid, device.token)
