"""Who holds a device: a claim, and its holders, which form a tree. Touches no file.

Roots hold the device itself, one exclusively or several with shares. Behind a root stands who took the device from it,
and behind that who took it on: an `externalresource run` inside another, a Python worker inside its TaskManager. The
last of these has the device for itself. Whoever is left when a root has ended is the root then: a device is free once
no holder lives.
"""

import os
from collections.abc import Callable, Collection, Iterable, Sequence

from externalresource.coordination.process import Observer, Process
from externalresource.records import record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    #: A UUID and a token, by which another device is named. One of them may be unknown.
    Name = tuple[str | None, str | None]

#: What a line of the file may need of its reader. None yet: whoever does not know a word must not touch the line.
_KNOWN_NEEDS: frozenset[str] = frozenset()


def new_grant() -> str:
    """Return a name that is never used again, for what an owner is granted at one time."""
    return os.urandom(8).hex()


@record
class Holder:
    """A process that holds a device."""

    process: Process
    #: Name of what it was granted at one time, of which others may take a part.
    grant: str | None = None
    #: UTC, as in 2026-11-20T18:23:54Z.
    since: str | None = None
    #: Name of a lock that is free once the holder has ended, for those who cannot see its pid; see life_lock.py.
    life_lock: str | None = None
    #: Whoever carries the grant as a mark counts as the holder, too: see inside.py.
    marked: bool = False
    #: It holds the device itself, and has it from no other holder.
    root: bool = True
    #: How much of the device it has; None is all of it.
    share: "Mapping[str, Any] | None" = None
    #: What is known of the command of `run` that has left it the device: `pid`, `program`, `start_time`, namespaces.
    left_by: "Mapping[str, Any] | None" = None
    #: What else the file says of it: it is kept.
    others: "Mapping[str, Any]" = {}  # noqa: RUF012 - nobody changes it
    #: False only if it provably is no more, as `Coordination.held` has seen it.
    living: bool = True

    def is_of(self, process: Process) -> bool:
        """Return whether it is that living process; a line of Flink's own script has no more than the pid."""
        return self.process == process or (self.process.start_time is None and self.process.pid == process.pid)


@record
class Claim:
    """A device and its holders, each behind the one that it has it from."""

    #: The device's name as CUDA_VISIBLE_DEVICES takes it, or any other blank-free word.
    token: str
    holders: Sequence[Holder]
    uuid: str | None = None
    parent_uuid: str | None = None
    parent_token: str | None = None
    device_class: str | None = None
    #: What whoever reads the line must know to judge it.
    needs: Sequence[str] = ()
    #: What else the file says of it: it is kept.
    others: "Mapping[str, Any]" = {}  # noqa: RUF012 - nobody changes it
    #: As it stands in the file, which is kept to the letter; empty if it does not stand there yet.
    line: str = ""
    #: Flink's script wrote it, which knows a device and a pid, and no namespaces.
    flinks: bool = False
    #: What its parent is a part of, what that is a part of, and so on.
    ancestors: "Sequence[Name]" = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Claim) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash((self.token, self.uuid))

    def _content(self) -> tuple[object, ...]:
        device = self.token, self.uuid, self.parent_uuid, self.parent_token, self.device_class
        return *device, tuple(self.holders), tuple(self.needs), self.others, tuple(self.ancestors)

    @property
    def owner(self) -> Holder:
        """The first holder, for Flink's two columns and for messages."""
        return self.holders[0]

    @property
    def is_lone(self) -> bool:
        """Whether its second column names the only process that ever had it."""
        return len(self.holders) == 1 and self.owner.left_by is None

    @property
    def living(self) -> bool:
        return any(holder.living for holder in self.holders)

    @property
    def understood(self) -> bool:
        """Whether we may judge it. Another one counts as held, and stays as it is."""
        return _KNOWN_NEEDS.issuperset(self.needs)


def seen(claim: Claim, here: Observer) -> Sequence[Holder]:
    """Return the holders; those of Flink's script are taken for the observer's own: a container cannot tell."""
    if not claim.flinks or here.in_container:
        return claim.holders
    return [
        replace(holder, process=replace(holder.process, pid_namespace=here.pid_namespace)) for holder in claim.holders
    ]


def above(claim: Claim, holder: Holder) -> Holder | None:
    """Return from whom a holder has its device; None for a root."""
    at = next(number for number, each in enumerate(claim.holders) if each is holder)
    return None if holder.root else claim.holders[at - 1]


def last_grants(claim: Claim) -> set[str | None]:
    """Return the grants of those that have the device, or their share of it, for themselves."""
    behind = [*claim.holders[1:], None]
    return {holder.grant for holder, after in zip(claim.holders, behind, strict=True) if after is None or after.root}


def life_locks(claims: Iterable[Claim]) -> set[str]:
    """Return the names of the locks on which claims rest."""
    return {holder.life_lock for claim in claims for holder in claim.holders if holder.life_lock}


def shared(claim: Claim, grants: Collection[str], taker: Holder) -> Claim:
    """Return the claim with one more holder, who takes the device from the one that has it by one of these grants."""
    at = next(number for number, holder in reversed([*enumerate(claim.holders)]) if holder.grant in grants) + 1
    held = [*claim.holders[:at], replace(taker, root=False), *claim.holders[at:]]
    return replace(claim, holders=tuple(held), line="", flinks=False)


def handed_on(claim: Claim, ended: Holder, user: Process | None) -> Claim | None:
    """Return the claim with that process, which uses what a holder has left, or nobody, in its place."""
    if user is None:
        return left(claim, lambda other: other.grant != ended.grant)
    process = ended.process
    command = {
        name: getattr(process, name) for name in ("pid", "start_time", "pid_namespace", "time_namespace", "program")
    }
    left_by = ended.left_by or {name: value for name, value in command.items() if value is not None}
    held = tuple(
        [
            replace(each, process=replace(user, uid=process.uid), left_by=left_by)
            if each.grant == ended.grant and each.process != user
            else each
            for each in claim.holders
        ]
    )
    return claim if held == tuple(claim.holders) else replace(claim, holders=held, line="", flinks=False)


def left(claim: Claim, stays: Callable[[Holder], bool]) -> Claim | None:
    """Return the claim with those holders that stay, the first behind a root that does not as the root; None of none.

    It is the same object if nobody goes, or if we may not judge it.
    """
    kept: list[Holder] = []
    rootless = False
    for holder in claim.holders:
        rootless = rootless or holder.root
        if not claim.understood or stays(holder):
            kept.append(replace(holder, root=True) if rootless and not holder.root else holder)
            rootless = False
    if len(kept) == len(claim.holders):
        return claim
    return replace(claim, holders=tuple(kept), line="", flinks=False) if kept else None
