"""What this process holds of one coordination file, to be given back as it was given.

A process that lives on may be interrupted at any moment. So a claim is noted here before it is made, and one that
nobody was told of is given back by whoever notices: the claim itself, the next one, `close`, or the end of this object.
"""

import _thread
import os
import sys
from collections.abc import Collection, Sequence

from externalresource.coordination import life_lock
from externalresource.coordination.claims import Coordination
from externalresource.coordination.holders import Holder, new_grant
from externalresource.coordination.life_lock import LifeLock
from externalresource.coordination.matching import Claimable
from externalresource.coordination.process import identify
from externalresource.errors import CoordinationError, ExternalResourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from externalresource.coordination.matching import D


def watch_over_exec() -> None:
    """Have watchers hold the life locks of what this process keeps over an exec, whatever that program closes.

    To be called while it has one thread, and is not pid 1, which would adopt them. CoordinationError if they cannot be
    started.
    """
    if life_lock.is_kept():  # on the host only with `until_children_exit`, which containers judge by the lock
        life_lock.watch_over_exec(identify(os.getpid()))


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

    def claim(
        self, devices: "Sequence[D]", amount: int, *, until_children_exit: bool = False, **request: "Any"
    ) -> "Sequence[D]":
        """Claim devices for this process as `Coordination.claim` does, whose further arguments these take.

        CoordinationError if another thread has closed this meanwhile.
        """
        self._give_back_lost()
        thread = _thread.get_ident()
        grant = self.coordination.run(lambda: self._noted(thread, until_children_exit=until_children_exit))
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

        Return the names of the grants, of which processes inside of that program may take shares.
        """
        for grant in self._grants:
            if grant.life_lock is not None:
                grant.life_lock.keep_over_exec()
        return [grant.holder.grant for grant in self._grants if grant.holder.grant]

    def __del__(self) -> None:
        if sys.is_finalizing():  # the end of the process frees it
            return
        for grant in self._grants:
            grant.is_lost = grant.is_lost or not grant.devices
            grant.claiming = None
        if any(grant.is_lost for grant in self._grants):
            self._try_to_give_back()

    def _noted(self, thread: int, *, until_children_exit: bool) -> _Grant:
        """Take note of a claim, with a lock that shows others that this process lives, if it needs one."""
        lock = None
        if until_children_exit or self.coordination.in_container():
            lock = LifeLock(self.coordination.path, inherited=until_children_exit)
        name = None if lock is None else lock.name
        try:
            itself = identify(os.getpid())
        except ExternalResourceError:
            if lock is not None:
                lock.close()
            raise
        holder = Holder(itself, new_grant(), life_lock=name, until_children_exit=until_children_exit)
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
            self._strike_out(grant)

        self.coordination.run(forget)

    def _strike_out(self, grant: _Grant) -> None:
        try:  # noqa: SIM105 - contextlib costs the driver a millisecond
            self._grants.remove(grant)
        except ValueError:  # another thread gave it back, too
            pass
