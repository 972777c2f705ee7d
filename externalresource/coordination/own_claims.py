"""What this process holds of one coordination file, to be given back as it was given.

A process that lives on may be interrupted at any moment. So a claim is noted here before it is made, and one that
nobody was told of is given back by whoever notices: the claim itself, the next one, `close`, or the end of this object.
"""

import _thread
import os
import sys
from collections.abc import Collection, Sequence

from externalresource.coordination.claims import Coordination
from externalresource.coordination.holders import Holder, new_grant
from externalresource.coordination.inside import ancestors, mark
from externalresource.coordination.life_lock import LifeLock
from externalresource.coordination.lock import flock, unshielded
from externalresource.coordination.matching import Claimable
from externalresource.coordination.process import identify
from externalresource.errors import CoordinationError, ExternalResourceError
from externalresource.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from externalresource.coordination.matching import D
    from externalresource.coordination.watchers import Heir


#: What this process holds also as the program that it is about to become: where, and what.
_kept: dict[str, tuple[Coordination, "_Grant"]] = {}


def watch_over_exec(program: str) -> None:
    """Have watchers hold the life locks of what this process keeps as that program, whatever that closes or leaves.

    To be called while it has one thread, and is not pid 1, which would adopt them. CoordinationError if they cannot be
    started.
    """
    for coordination, grant in _kept.values():
        if grant.life_lock is not None:
            process = replace(grant.holder.process, program=os.path.basename(program))
            holder = replace(grant.holder, process=process)
            grant.life_lock.post_apart(process, _heirs_of(coordination, holder) if holder.marked else None)


def _heirs_of(coordination: Coordination, holder: Holder) -> "Heir":
    """Return what tells watchers, who stand in another folder and are never interrupted, who is left after a holder."""
    path = os.path.abspath(coordination.path)
    theirs = Coordination(path, coordination.device_class, lock=flock, run=unshielded, runs=())
    above = ancestors(holder.process.pid)
    return lambda: theirs.heir(holder, above, None)


class _Grant:
    __slots__ = "claiming", "devices", "holder", "is_lost", "life_lock"

    def __init__(self, holder: Holder, life_lock: LifeLock | None, claiming: int) -> None:
        self.devices: Sequence[Claimable] = ()  # until they are claimed
        self.holder = holder
        #: The thread that claims them, which alone may give back what it may get at any moment; None when it has them.
        self.claiming: int | None = claiming
        #: A lock of this process, for those who cannot see its pid, or for its children.
        self.life_lock = life_lock
        #: Nobody has it, or wants it any more.
        self.is_lost = False


class Grants:
    """What a driver has claimed for its own process."""

    def __init__(self, coordination: Coordination) -> None:
        self.coordination = coordination
        self._grants: list[_Grant] = []

    def claim(self, devices: "Sequence[D]", amount: int, *, marked: bool = False, **request: "Any") -> "Sequence[D]":
        """Claim devices for this process as `Coordination.claim` does, whose further arguments these take.

        If `marked`, also for whatever will carry the mark of this grant. CoordinationError if another thread has closed
        this meanwhile.
        """
        self._give_back_lost()
        thread = _thread.get_ident()
        grant = self.coordination.run(lambda: self._noted(thread, marked=marked))
        try:
            claimed = self.coordination.claim(devices, amount, grant.holder, **request)
            grant.devices = tuple(claimed)  # the caller may do with his list what he likes
            grant.claiming = None
        except ExternalResourceError:
            self._forget(grant)
            raise
        except BaseException:
            grant.is_lost = True  # first of all: this may be interrupted, too
            self._try_to_give_back()
            raise
        if grant.is_lost:  # seen here, or `claiming` by who closes: one of the two writes first
            self._give_back_lost()
            raise CoordinationError("closed by another thread during this claim: what it got has been given back")
        return claimed

    @property
    def devices(self) -> list[Claimable]:
        """Return what this process has, in the order in which it was claimed."""
        return [device for grant in self._grants for device in grant.devices]

    def close(self) -> None:
        """Give back exactly that; another thread that is claiming gives back what it gets, and raises.

        In a forked child nothing happens: there it belongs to the parent.
        """
        for grant in self._grants:
            grant.is_lost = True
        self._give_back_lost()

    def keep_over_exec(self) -> Collection[str]:
        """Let it outlast an exec of this process, which stays the owner; close() is never called then.

        Return the marks of the grants, of which processes inside of that program may take shares.
        """
        grants = [(grant, grant.holder.grant) for grant in self._grants]
        for grant, name in grants:
            if name is not None and grant.life_lock is not None:
                grant.life_lock.keep_over_exec()
                _kept[name] = self.coordination, grant
        return [mark(self.coordination.device_class, name) for _, name in grants if name]

    def __del__(self) -> None:
        if sys.is_finalizing():  # the end of the process frees it
            return
        for grant in self._grants:
            grant.is_lost = grant.is_lost or not grant.devices
            grant.claiming = None
        if any(grant.is_lost for grant in self._grants):
            self._try_to_give_back()

    def _noted(self, thread: int, *, marked: bool) -> _Grant:
        """Take note of a claim, with a lock that shows others that this process lives, if it needs one."""
        lock = None
        if marked or self.coordination.in_container():
            lock = LifeLock(self.coordination.path)
        name = None if lock is None else lock.name
        try:
            itself = identify(os.getpid())
        except ExternalResourceError:
            if lock is not None:
                lock.close()
            raise
        holder = Holder(itself, new_grant(), life_lock=name, marked=marked)
        self._grants.append(_Grant(holder, lock, thread))
        return self._grants[-1]

    def _try_to_give_back(self) -> None:
        try:  # noqa: SIM105 - contextlib costs the driver a millisecond
            self._give_back_lost()
        except ExternalResourceError:  # whoever comes next tries again
            pass

    def _give_back_lost(self) -> None:
        lost = [grant for grant in self._grants if grant.is_lost]
        itself = identify(os.getpid()) if lost else None
        for grant in lost:
            if grant.holder.process != itself:  # the parent's, whose fork this is
                self._strike_out(grant)
            elif grant.claiming in (None, _thread.get_ident()):
                self.coordination.release(None, grant.holder)
                self._forget(grant)

    def _forget(self, grant: _Grant) -> None:
        def forget() -> None:
            if grant.life_lock is not None:
                grant.life_lock.close()
            _kept.pop(grant.holder.grant or "", None)
            self._strike_out(grant)

        self.coordination.run(forget)

    def _strike_out(self, grant: _Grant) -> None:
        try:  # noqa: SIM105 - contextlib costs the driver a millisecond
            self._grants.remove(grant)
        except ValueError:  # another thread gave it back, too
            pass
