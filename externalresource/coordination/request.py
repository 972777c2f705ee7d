"""What one process asks for, what of that it can have, and in which words it is refused. Touches no file itself."""

import time
from collections.abc import Callable, Iterable, Sequence

from externalresource.coordination import holders, inside, matching, process as processes, queue
from externalresource.coordination.holders import Claim, Holder
from externalresource.coordination.lock import LockedError
from externalresource.coordination.matching import Claimable, Wholes
from externalresource.coordination.process import Observer, Process
from externalresource.coordination.queue import Place
from externalresource.errors import ConfigurationError, NotEnoughDevicesError, printable, too_few
from externalresource.records import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from externalresource.coordination.matching import D

    #: Picks so many of the free devices, beside these claims.
    Choose = Callable[[Sequence[D], Sequence[Claim], int], Sequence[D]]

_SHOWN, _NAMED = 8, 16  # owners that a refusal names, and devices of each


class TooFewError(NotEnoughDevicesError):
    """Fewer devices are free than wanted: why is put into words only where somebody reads them."""

    def __init__(self, free: int) -> None:
        super().__init__(free)
        self.free = free


class NeverEnoughError(NotEnoughDevicesError):
    """There is no use in waiting."""


@record
class Request:
    """What is asked for at one time."""

    devices: "Sequence[Any]"
    amount: int
    holder: Holder
    choose: "Choose[Any]"
    #: Whether a device would do at the moment.
    suits: "Callable[[Any], bool]"
    #: Of the devices that the driver lists.
    wholes: Wholes
    #: Seconds in the queue at most.
    wait: float = 0
    #: The grants of which it wants shares; of none, it wants devices that nobody holds.
    within: frozenset[str] = frozenset()
    #: What it is bounded by, in words.
    whole: str = ""

    @property
    def line(self) -> str:
        """Those who want shares of one grant wait in a line of their own."""
        return ",".join(sorted(self.within))

    def rivals(self, claims: Sequence[Claim]) -> list[Claim]:
        """Return the claims that take devices from this request."""
        return [
            claim
            for claim in claims
            if not (self.within and claim.understood and self.within & holders.last_grants(claim))
        ]

    def claim_of(self, device: Claimable, holder: Holder, device_class: str) -> Claim:
        """Return the claim of a device that was chosen, with all of which it is a part."""
        parent, above = (device.parent_uuid, device.parent_token), tuple(self.wholes.of(device)[1:])
        return Claim(device.token, (replace(holder, root=True),), device.uuid, *parent, device_class, ancestors=above)


def checked(
    devices: "Sequence[Any]",
    amount: int,
    holder: Holder,
    choose: "Choose[Any] | None",
    suits: "Callable[[Any], bool]",
    among: "Iterable[Claimable] | None",
    wait: float,
) -> Request:
    """Return a request by a holder that has a grant; raise for one that asks for what can never be."""
    if amount < 1:
        raise ConfigurationError(f"the amount must be a positive integer, not {amount}")
    if amount > len(devices):
        raise too_few(amount, len(devices))
    wholes = Wholes(devices if among is None else among)
    wholes.check()
    choose = choose or (lambda free, _claims, amount: matching.apart(free, amount, wholes))
    holder = holder if holder.grant else replace(holder, grant=holders.new_grant())
    return Request(devices, amount, holder, choose, suits, wholes, wait)


def place_of(request: Request, name: str) -> Place:
    """Return the place in the queue of whoever holds the lock of that name and asks for this."""
    suitable = [device for device in request.devices if request.suits(device)]
    return queue.place(name, request.amount, suitable, request.line, request.wholes)


def bounded(request: Request, grants: frozenset[str], run: Sequence[tuple[Claim, Holder]]) -> Request:
    """Return the request for shares of these grants, which a run has by these claims.

    Raises NeverEnoughError if the run has too few.
    """
    owner = run[0][1]
    mine = matching.named(request.devices, [claim for claim, _ in run])
    part = "" if len(mine) == len(run) else f" ({len(mine)} of them visible and suitable)"
    way_out = "; `env -u EXTERNALRESOURCE_RUN -u CUDA_VISIBLE_DEVICES` steps out of it" if owner.left_by else ""
    who = _who(owner, processes.observer())
    whole = printable(f"the {len(run)} that {who} has, inside of which this runs{way_out}{part}")
    if request.amount > len(mine):
        raise NeverEnoughError(f"{request.amount} wanted of {whole}")
    return replace(request, devices=mine, within=grants, whole=f"{whole},")


def offered(
    request: Request, claims: Sequence[Claim], ahead: Sequence[Place], waits: Callable[[Place], bool]
) -> "list[Any]":
    """Return what a request may choose from beside these claims, and those that wait before it.

    TooFewError if that is too little.
    """
    before = [place for place in ahead if place.line == request.line]
    free = matching.free(request.devices, request.rivals(claims), request.wholes)
    free = queue.unreserved(free, before, request.wholes, waits)
    if len(free) < request.amount:
        raise TooFewError(len(free))
    return free


def choice(
    request: Request, claims: Sequence[Claim], ahead: Sequence[Place], waits: Callable[[Place], bool]
) -> "list[Any]":
    """Return what a request gets beside these claims, and those that wait before it; TooFewError if that is too little.

    Raises what its `choose` raises, and CoordinationError if that gives a device twice.
    """
    free = offered(request, claims, ahead, waits)
    chosen = list(request.choose(free, claims, request.amount))
    matching.check_choice(chosen, free, request.amount, request.wholes)
    return chosen


def patiently(
    request: Request,
    attempt: "Callable[[float], list[Any]]",
    view: queue.View,
    pause: Callable[[float, str], None],
    end: float,
    deadline: float,
) -> "list[Any]":
    """Return what an attempt returns, made whenever the view is outdated, with a pause between two.

    NotEnoughDevicesError if it does so at `end` (time.monotonic), LockedError if it does so at `deadline`.
    """
    reason = ""
    while True:
        now, said, until = time.monotonic(), reason, end
        try:
            if now >= end or view.is_outdated():
                return attempt(now)
        except NeverEnoughError:
            raise
        except NotEnoughDevicesError as error:
            if now >= end:
                raise NotEnoughDevicesError(f"{error}; waited {request.wait:g} s for them") from None
            reason = str(error)
        except LockedError as error:
            if now >= deadline:
                raise
            reason, until = str(error), deadline
        view.rest(changed=reason != said)
        pause(max(0, min(view.pause, until - time.monotonic())), reason)


def refusal(request: Request, claims: Sequence[Claim], free: int, ahead: Sequence[Place]) -> str:
    """Return why a request gets nothing: how much is free, who waits before it, who holds what since when."""
    here, last = processes.observer(), -1 if request.within else 0
    taken: dict[Process, tuple[Holder, list[Claim]]] = {}
    for claim in matching.taking(request.rivals(claims), request.devices, request.wholes):
        holder = holders.seen(claim, here)[last]
        taken.setdefault(holder.process, (holder, []))[1].append(claim)
    shown = [
        _holds(holder, here, held, itself=holder.process == request.holder.process)
        for holder, held in list(taken.values())[:_SHOWN]
    ]
    whole = request.whole or str(len(request.devices))
    parts = [f"{request.amount} wanted, {free} of {whole} free"]
    if rivals := queue.rivals(ahead, request.devices, request.line, request.wholes):
        parts.append(f"{len(rivals)} waiting before")
    if shown:
        more = f"; and {len(taken) - _SHOWN} more owners" if len(taken) > _SHOWN else ""
        parts.append(f"held by {'; '.join(shown)}{more}")
    return "; ".join(parts)


def _holds(holder: Holder, here: Observer, held: Sequence[Claim], *, itself: bool) -> str:
    when = f", since {holder.since}" if holder.since else ""
    again = ", which asks again and would get further ones" if itself else ""
    more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
    named = f"{', '.join(claim.token for claim in held[:_NAMED])}{more}{again}"
    return printable(f"{_who(holder, here)}{when}: {named}{_way_to_free(holder, here, held[0])}")


def _who(holder: Holder, here: Observer) -> str:
    """Return what is known of a holder, and of the command of `run` that has left it the devices."""
    program = processes.program_of(holder.process, here)
    who = f"pid {holder.process.pid}" + (f" ({program})" if program else "")
    if not holder.left_by:
        return who
    return f"{who}, left by pid {holder.left_by.get('pid')} ({holder.left_by.get('program')})"


def _way_to_free(holder: Holder, here: Observer, claim: Claim) -> str:
    """Return what can be done about a holder that a command of `run` has left, or that may have left one."""
    ended = holder.marked and processes.gone(holder.process, here)
    if not (holder.left_by or ended):
        return ""
    if not inside.is_its_user(holder.process, here):
        who = f"its user, uid {holder.process.uid}, and root"
        if ended:
            return (
                f" (it has ended; only {who} see what it has left: by `externalresource status {claim.device_class}`)"
            )
        return f" (only {who} can end or release it)"
    release = f"externalresource release {claim.device_class} --device {claim.token} --force"
    return f" (end it; if it does not use the device, `{release}` frees it)"
