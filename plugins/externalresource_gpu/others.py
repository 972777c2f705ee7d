"""Who else holds a device that is handed out without coordination, as far as the coordination file tells.

It names those who coordinate. Others leave no trace that every container would see.
"""

import os

from externalresource.coordination import identify, pid_here, program_of, runs_around
from externalresource.errors import CoordinationError, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from externalresource.coordination import Claim, Claimable, Coordination, Holder

    #: UUID and token; either may be unknown.
    Name = tuple[str | None, str | None]


def warn_of_others(coordination: "Coordination", granted: "Sequence[Claimable]") -> None:
    """Say in the log, in one warning, which of the devices other living processes hold.

    A file that cannot be read is passed over: who does not coordinate does not need it.
    """
    try:
        claims = coordination.held()
    except CoordinationError:
        return
    shown = [
        f"device {device.token} (pid {pid_here(holder.process) or holder.process.pid}, {program_of(holder.process)})"
        for device in granted
        for claim in claims
        if _takes(claim, device)
        for holder in _others(claim)
    ]
    if shown:
        warn(
            f"coordination is off, so this process has devices that others hold by {coordination.path}: "
            f"{', '.join(shown)}; set enable-coordination-mode to get free ones"
        )


def _others(claim: "Claim") -> "Iterator[Holder]":
    """Yield its living holders, but for this process and the runs that it is inside of."""
    itself, around = identify(os.getpid()), frozenset[str]().union(*runs_around())
    return (each for each in claim.holders if each.living and not each.is_of(itself) and each.grant not in around)


def _takes(claim: "Claim", device: "Claimable") -> bool:
    """Return whether a claim is for a device, for a part of it, or for what it is a part of."""
    claimed, named = (claim.uuid, claim.token), (device.uuid, device.token)
    above = [(claim.parent_uuid, claim.parent_token), *claim.ancestors]
    return (
        _is(claimed, named)
        or _is(claimed, (device.parent_uuid, device.parent_token))
        or any(_is(whole, named) for whole in above)
    )


def _is(one: "Name", other: "Name") -> bool:
    if one[0] and other[0]:
        return one[0] == other[0]
    return bool({*one} & {*other} - {None})
