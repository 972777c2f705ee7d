"""Claim devices, give them back, see who holds them: the coordination file under its lock.

The lock is flock(2) on `FILE.lock`, which is never replaced or removed by us; the file itself is replaced whole.
Flink's own script edits the very file that it locks, and so hands out devices twice.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from filelock import lock_descriptor, unlock_descriptor

from externalresource import ledger
from externalresource import owner as processes
from externalresource.errors import ConfigurationError, CoordinationError, NotEnoughDevicesError
from externalresource.ledger import Claim
from externalresource.owner import Observer, Owner, identify

__all__ = ["Choose", "Claim", "Claimable", "Coordination", "Holding", "Owner", "first", "identify", "lives"]

DEFAULT_TIMEOUT = 9.0  # seconds: Flink's 10 for a discovery script, less its start
_PAUSE = 0.0005, 0.01  # seconds between two looks at the lock: the first, and the longest
_SHOWN = 8  # owners that a refusal names


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


D = TypeVar("D", bound=Claimable)
Choose = Callable[[Sequence[D], Sequence[Claim], int], Sequence[D]]


@dataclass(frozen=True, slots=True)
class Holding:
    """A claim as `status` shows it."""

    claim: Claim
    owner: Owner
    #: UTC, as in 2026-11-20T18:23:54Z; None for a line of Flink's script.
    since: str | None
    #: False only if the owner provably is no more.
    living: bool


def first(free: Sequence[D], claims: Sequence[Claim], amount: int) -> Sequence[D]:
    """Return the first `amount` of the free devices."""
    del claims
    return free[:amount]


def lives(owner: Owner) -> bool:
    """Return False only if that process provably is no more."""
    return not processes.gone(owner, processes.observer())


class Coordination:
    """The devices of one class on this host, as the processes that share one coordination file divide them."""

    def __init__(
        self, path: str, device_class: str, *, gone: Callable[[Owner, Observer], bool] = processes.gone
    ) -> None:
        self.path = path
        self._class = device_class
        self._gone = gone

    def claim(
        self,
        devices: Sequence[D],
        amount: int,
        owner: Owner,
        *,
        choose: Choose[D] = first,
        deadline: float | None = None,
    ) -> list[D]:
        """Record `amount` of the devices for `owner` and return them: none that a living owner may hold.

        `choose` picks among the free ones, under the lock; `deadline` (of `time.monotonic`) bounds the wait for it.
        Raises NotEnoughDevicesError, which says who holds them; CoordinationError if the file cannot be used.
        """
        if amount < 1:
            raise ConfigurationError(f"the amount must be a positive integer, not {amount}")
        if amount > len(devices):
            raise NotEnoughDevicesError(f"{amount} wanted, this host has {len(devices)}")
        with self._locked(deadline):
            claims = self._read()
            free = _free(devices, claims)
            if len(free) < amount:  # only now: with 1,023 owners a look at each costs twenty times the rest
                claims = self._without_the_dead(claims)
                free = _free(devices, claims)
            if len(free) < amount:
                raise NotEnoughDevicesError(_refusal(amount, devices, len(free), self._holdings(claims), owner))
            chosen = list(choose(free, claims, amount))
            new = [self._new_claim(device, owner) for device in chosen]
            _check(chosen, free, amount, new)
            ledger.write(self.path, ledger.append(claims, new))
        return chosen

    def release(self, devices: Iterable[Claimable], owner: Owner, *, deadline: float | None = None) -> int:
        """Give back those of the devices that this owner holds; return how many those were."""
        given_back = list(devices)
        with self._locked(deadline):
            claims, here = self._read(), processes.observer()
            kept = [
                claim
                for claim in claims
                if not (_owner(claim, here).same_process(owner) and any(_same(claim, device) for device in given_back))
            ]
            if len(kept) < len(claims):
                ledger.write(self.path, kept)
        return len(claims) - len(kept)

    def held(self) -> list[Holding]:
        """Return who holds what. Needs no lock: the file is only ever replaced whole."""
        return self._holdings(self._read())

    def _read(self) -> list[Claim]:
        claims = ledger.read(self.path)
        for claim in claims:
            if claim.details.get("class", self._class) != self._class:
                raise CoordinationError(
                    f"{self.path} coordinates {claim.details['class']!r}, not {self._class!r}: "
                    "one file serves one class of devices; choose another file"
                )
        return claims

    def _without_the_dead(self, claims: Sequence[Claim]) -> list[Claim]:
        return [holding.claim for holding in self._holdings(claims) if holding.living]

    def _holdings(self, claims: Sequence[Claim]) -> list[Holding]:
        here = processes.observer()
        owners = [_owner(claim, here) for claim in claims]
        dead = {owner for owner in set(owners) if self._gone(owner, here)}
        return [
            Holding(claim, owner, claim.details.get("since"), living=owner not in dead)
            for claim, owner in zip(claims, owners, strict=True)
        ]

    def _new_claim(self, device: Claimable, owner: Owner) -> Claim:
        details = {
            "uuid": device.uuid,
            "parent_uuid": device.parent_uuid,
            "parent_token": device.parent_token,
            "class": self._class,
            "start_time": owner.start_time,
            "boot_id": owner.boot_id,
            "pid_namespace": owner.pid_namespace,
            "time_namespace": owner.time_namespace,
            "uid": owner.uid,
            "program": owner.program,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        known = {key: value for key, value in details.items() if value is not None}
        return Claim(device.token, owner.pid, known)

    @contextlib.contextmanager
    def _locked(self, deadline: float | None) -> Iterator[None]:
        """Hold the lock. CoordinationError if it is not free by the deadline."""
        path = f"{self.path}.lock"
        end = time.monotonic() + DEFAULT_TIMEOUT if deadline is None else deadline
        descriptor = _lock(path, end)
        try:
            yield
        finally:
            unlock_descriptor(descriptor)  # closing is not enough: a fork of this moment has the descriptor, too
            os.close(descriptor)


def _lock(path: str, end: float) -> int:
    """Return a descriptor that holds the lock of the file that is at the path."""
    pause, longest = _PAUSE
    descriptor = _open_lock(path)
    while not _holds(path, descriptor):
        os.close(descriptor)  # opened again each time: if another file was put at the path, that one is the lock
        if time.monotonic() >= end:
            raise CoordinationError(f"{path} was not free in time: another process holds this lock; see 'fuser {path}'")
        time.sleep(pause)
        pause = min(pause * 2, longest)
        descriptor = _open_lock(path)
    return descriptor


def _open_lock(path: str) -> int:
    try:
        try:
            # An existing one is opened without O_CREAT, which fs.protected_regular refuses for another user's file.
            return ledger.open_plain(path, os.O_RDONLY)
        except FileNotFoundError:
            descriptor = ledger.open_plain(path, os.O_RDONLY | os.O_CREAT)
    except OSError as error:
        raise ledger.refusal("lock", path, error) from None
    with contextlib.suppress(PermissionError):  # of another user who created it just now
        os.fchmod(descriptor, 0o644)  # whatever the umask: those who cannot open it cannot ever share devices with us
    return descriptor


def _holds(path: str, descriptor: int) -> bool:
    """Try to lock the file; False if somebody else holds it, or if it is no longer the one at the path."""
    try:
        return lock_descriptor(descriptor, blocking=False) and _is_at(path, descriptor)
    except OSError as error:
        os.close(descriptor)
        raise ledger.refusal("lock", path, error) from None


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _free(devices: Sequence[D], claims: Sequence[Claim]) -> list[D]:
    taken = _Taken(claims)
    return [device for device in devices if device not in taken]


def _check(chosen: Sequence[Claimable], free: Sequence[Claimable], amount: int, new: Sequence[Claim]) -> None:
    """Raise unless the choice, which may be a stranger's, gives no device twice."""
    strange = {id(device) for device in chosen} - {id(device) for device in free}
    different = {device.uuid or device.token for device in chosen}
    taken = _Taken(new)
    if strange or not len(different) == len(chosen) == amount or any(taken.excludes(device) for device in chosen):
        raise CoordinationError(
            f"nothing is granted: the driver must choose {amount} different ones of the free devices, none of them a "
            f"slice of another, not {', '.join(device.token for device in chosen) or 'none'}"
        )


class _Named:
    """Devices by UUID where both sides know one, else by token: a container's 0 is another GPU than the host's."""

    def __init__(self, names: Iterable[tuple[str | None, str | None]]) -> None:
        pairs = list(names)
        self._uuids = {uuid for uuid, _ in pairs if uuid}
        self._tokens = {token for _, token in pairs if token}
        self._bare = {token for uuid, token in pairs if token and not uuid}  # may be a UUID, too

    def has(self, uuid: str | None, token: str | None) -> bool:
        if not uuid:
            return token in self._tokens
        return uuid in self._uuids or uuid in self._bare or token in self._bare


class _Taken:
    """What a set of claims takes: the same devices, the slices of those, and that of which they are slices."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._devices = _Named((claim.uuid, claim.token) for claim in claims)
        self._parents = _Named((claim.parent_uuid, claim.parent_token) for claim in claims)

    def __contains__(self, device: Claimable) -> bool:
        return self._devices.has(device.uuid, device.token) or self.excludes(device)

    def excludes(self, device: Claimable) -> bool:
        """Whether it is not claimed itself, but is a slice of what is, or has a slice that is."""
        parent = device.parent_uuid, device.parent_token
        return self._devices.has(*parent) or self._parents.has(device.uuid, device.token)


def _same(claim: Claim, device: Claimable) -> bool:
    return claim.uuid == device.uuid if claim.uuid and device.uuid else claim.token == device.token


def _owner(claim: Claim, here: Observer) -> Owner:
    details = claim.details
    if not details:  # of Flink's script, which knows no namespaces: it means the pid as every reader sees it
        return Owner(claim.pid, pid_namespace=here.pid_namespace)
    return Owner(
        pid=claim.pid,
        start_time=details.get("start_time"),
        boot_id=details.get("boot_id"),
        pid_namespace=details.get("pid_namespace"),
        time_namespace=details.get("time_namespace"),
        uid=details.get("uid"),
        program=details.get("program"),
    )


def _refusal(wanted: int, devices: Sequence[Claimable], free: int, holdings: Iterable[Holding], asker: Owner) -> str:
    taken: dict[Owner, list[Holding]] = {}
    for holding in holdings:
        takes = _Taken([holding.claim])
        if any(device in takes for device in devices):
            taken.setdefault(holding.owner, []).append(holding)
    shown = [_holder(owner, held, asker) for owner, held in taken.items()][:_SHOWN]
    more = f"; and {len(taken) - _SHOWN} more owners" if len(taken) > _SHOWN else ""
    return f"{wanted} wanted, {free} of {len(devices)} free; held by {'; '.join(shown)}{more}"


def _holder(owner: Owner, held: Sequence[Holding], asker: Owner) -> str:
    who = f"pid {owner.pid}" + (f" ({owner.program})" if owner.program else "")
    since = f", since {held[0].since}" if held[0].since else ""
    itself = ", which asks again and would get further ones" if owner.same_process(asker) else ""
    return f"{who}{since}: {', '.join(holding.claim.token for holding in held)}{itself}"
