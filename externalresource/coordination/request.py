"""What one process asks for, what of that it can have, and in which words it is refused. Touches no file."""

from collections.abc import Callable, Sequence

from externalresource.coordination import holders, matching, process as processes, queue
from externalresource.coordination.holders import Claim, Holder
from externalresource.coordination.matching import Claimable, Wholes
from externalresource.coordination.process import Process
from externalresource.coordination.queue import Place
from externalresource.errors import NotEnoughDevicesError, printable
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


def bounded(request: Request, grants: frozenset[str], run: Sequence[tuple[Claim, Process]]) -> Request:
    """Return the request for shares of these grants, which a run has by these claims.

    Raises NeverEnoughError if the run has too few.
    """
    owner = run[0][1]
    mine = matching.named(request.devices, [claim for claim, _ in run])
    part = "" if len(mine) == len(run) else f" ({len(mine)} of them visible and suitable)"
    program = processes.program_of(owner, processes.observer())
    whole = printable(f"the {len(run)} that pid {owner.pid} ({program}) has, inside of which this runs{part}")
    if request.amount > len(mine):
        raise NeverEnoughError(f"{request.amount} wanted of {whole}")
    return replace(request, devices=mine, within=grants, whole=f"{whole},")


def choice(request: Request, claims: Sequence[Claim], ahead: Sequence[Place]) -> "list[Any]":
    """Return what a request gets beside these claims, and those that wait before it; TooFewError if that is too little.

    Raises what its `choose` raises, and CoordinationError if that gives a device twice.
    """
    before = [place for place in ahead if place.line == request.line]
    free = matching.free(request.devices, request.rivals(claims), request.wholes)
    free = queue.unreserved(free, before, request.wholes)
    if len(free) < request.amount:
        raise TooFewError(len(free))
    chosen = list(request.choose(free, claims, request.amount))
    matching.check_choice(chosen, free, request.amount, request.wholes)
    return chosen


def refusal(request: Request, claims: Sequence[Claim], free: int, ahead: Sequence[Place]) -> str:
    """Return why a request gets nothing: how much is free, who waits before it, who holds what since when."""
    here, last = processes.observer(), -1 if request.within else 0
    taken: dict[Process, list[Claim]] = {}
    since: dict[Process, str | None] = {}
    for claim in matching.taking(request.rivals(claims), request.devices, request.wholes):
        holder = holders.seen(claim, here)[last]
        taken.setdefault(holder.process, []).append(claim)
        since.setdefault(holder.process, holder.since)
    shown = [
        _holds(process, held, since[process], request.holder.process) for process, held in list(taken.items())[:_SHOWN]
    ]
    whole = request.whole or str(len(request.devices))
    parts = [f"{request.amount} wanted, {free} of {whole} free"]
    rivals = [queue.wants(place, request.devices, request.wholes) for place in ahead if place.line == request.line]
    if any(rivals):
        parts.append(f"{sum(rivals)} waiting before")
    if shown:
        more = f"; and {len(taken) - _SHOWN} more owners" if len(taken) > _SHOWN else ""
        parts.append(f"held by {'; '.join(shown)}{more}")
    return "; ".join(parts)


def _holds(process: Process, held: Sequence[Claim], since: str | None, asker: Process) -> str:
    program = processes.program_of(process, processes.observer())
    who = f"pid {process.pid}" + (f" ({program})" if program else "")
    when = f", since {since}" if since else ""
    itself = ", which asks again and would get further ones" if process == asker else ""
    more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
    return printable(f"{who}{when}: {', '.join(claim.token for claim in held[:_NAMED])}{more}{itself}")
