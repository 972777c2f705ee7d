"""Who holds a claim: its owner, and whoever took a share of that. A line of the coordination file is a chain of them.

The owner comes first; each of the others took the device from the one before it: an `externalresource run` inside
another, a Python worker inside its TaskManager. The last has the device for itself, and whoever is left when the owner
has ended is the owner then: a device is free once none of them lives.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from externalresource.coordination.ledger import Claim
from externalresource.coordination.process import Observer, Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FIELDS = (
    "start_time", "boot_id", "pid_namespace", "time_namespace", "uid", "program", "pidfd_inode",
    "witness", "until_children_exit", "since", "grant",
)  # fmt: skip


def of(claim: Claim, here: Observer) -> list[Owner]:
    """Return the holders of a claim, its owner first."""
    if not claim.details:  # of Flink's script, which knows no namespaces: a container cannot tell whose pid that is
        return [Owner(claim.pid, pid_namespace=None if here.in_container else here.pid_namespace)]
    return [_holder(claim.pid, claim.details), *(_holder(share["pid"], share) for share in _shares(claim))]


def may_be(claim: Claim, pid: int) -> bool:
    """Return whether a process of that pid may be a holder of the claim: a quick look, where there are many claims."""
    return claim.pid == pid or any(share["pid"] == pid for share in claim.details.get("shares", ()))


def since(claim: Claim) -> list[str | None]:
    """Return since when each of the holders has it."""
    return [record.get("since") for record in (claim.details, *_shares(claim))]


def last_grant(claim: Claim) -> str | None:
    """Return the grant of the holder that has the device for itself."""
    record = (claim.details, *_shares(claim))[-1]
    return record.get("grant")


def witnesses(claims: Iterable[Claim]) -> set[str]:
    """Return the names of the locks on which claims rest."""
    records = [claim.details for claim in claims]
    records += [share for record in records if "shares" in record for share in record["shares"]]
    return {record["witness"] for record in records if "witness" in record}


def recorded(owner: Owner) -> "dict[str, Any]":
    """Return what the coordination file says of a holder besides its pid, as of now."""
    known = {
        "start_time": owner.start_time,
        "boot_id": owner.boot_id,
        "pid_namespace": owner.pid_namespace,
        "time_namespace": owner.time_namespace,
        "uid": owner.uid,
        "program": owner.program,
        "pidfd_inode": owner.pidfd_inode,
        "witness": owner.witness,
        "until_children_exit": owner.until_children_exit or None,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "grant": owner.grant,
    }
    return {key: value for key, value in known.items() if value is not None}


def shared(claim: Claim, owner: Owner) -> Claim:
    """Return the claim with one more holder, who takes it from the last."""
    share = {"pid": owner.pid, **recorded(owner)}
    return Claim(claim.token, claim.pid, {**claim.details, "shares": [*_shares(claim), share]})


def narrowed(claims: Iterable[Claim], stay: Callable[[Claim], Sequence[bool] | None]) -> list[Claim]:
    """Return the claims with those of their holders that stay, the first as its owner; None is for all."""
    left = [(claim, stay(claim)) for claim in claims]
    kept = [claim if who is None or all(who) else _narrowed(claim, who) for claim, who in left]
    return [claim for claim in kept if claim is not None]


def _narrowed(claim: Claim, stay: Sequence[bool]) -> Claim | None:
    own = {key: value for key, value in claim.details.items() if key in _FIELDS}
    records = [{"pid": claim.pid, **own}, *_shares(claim)]
    left = [record for record, stays in zip(records, stay, strict=True) if stays]
    if not left:
        return None
    device = {key: value for key, value in claim.details.items() if key not in _FIELDS and key != "shares"}
    owner = {key: value for key, value in left[0].items() if key != "pid"}
    return Claim(claim.token, left[0]["pid"], {**device, **owner, **({"shares": left[1:]} if left[1:] else {})})


def _shares(claim: Claim) -> "Sequence[Mapping[str, Any]]":
    shares: Sequence[Mapping[str, Any]] = claim.details.get("shares", ())
    return shares


def _holder(pid: int, record: "Mapping[str, Any]") -> Owner:
    return Owner(
        pid=pid,
        start_time=record.get("start_time"),
        boot_id=record.get("boot_id"),
        pid_namespace=record.get("pid_namespace"),
        time_namespace=record.get("time_namespace"),
        uid=record.get("uid"),
        program=record.get("program"),
        pidfd_inode=record.get("pidfd_inode"),
        witness=record.get("witness"),
        until_children_exit=record.get("until_children_exit", False),
        grant=record.get("grant"),
    )
