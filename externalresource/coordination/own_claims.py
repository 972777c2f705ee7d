"""What this process holds of one coordination file, to be given back as it was given."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from externalresource.coordination.claims import Coordination, new_grant
from externalresource.coordination.holders import Holder
from externalresource.coordination.life_lock import LifeLock
from externalresource.coordination.matching import Claimable
from externalresource.coordination.process import identify
from externalresource.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from externalresource.coordination.matching import D


@record
class _Grant:
    devices: Sequence[Claimable]
    holder: Holder
    #: A lock of this process, for those who cannot see its pid, or for its children.
    life_lock: LifeLock | None


class Grants:
    """What a driver has claimed for its own process."""

    def __init__(self, coordination: Coordination) -> None:
        self.coordination = coordination
        self._grants: list[_Grant] = []

    def claim(
        self, devices: "Sequence[D]", amount: int, *, until_children_exit: bool = False, **request: "Any"
    ) -> "Sequence[D]":
        """Claim devices for this process as `Coordination.claim` does, whose further arguments these take."""
        with self.life_lock(until_children_exit=until_children_exit) as lock:
            holder = Holder(
                identify(os.getpid()),
                new_grant(),
                life_lock=None if lock is None else lock.name,
                until_children_exit=until_children_exit,
            )
            claimed = self.coordination.claim(devices, amount, holder, **request)
            self.add(claimed, holder, lock)
        return claimed

    @property
    def devices(self) -> list[Claimable]:
        """Return what this process has, in the order in which it was claimed."""
        return [device for grant in self._grants for device in grant.devices]

    @contextmanager
    def life_lock(self, *, until_children_exit: bool) -> Iterator[LifeLock | None]:
        """Give this process a lock that shows others that it lives, if it needs one; close it if the block fails."""
        if not until_children_exit and not self.coordination.in_container():
            yield None
            return
        lock = LifeLock(self.coordination.path, inherited=until_children_exit)
        try:
            yield lock
        except BaseException:
            lock.close()
            raise

    def add(self, devices: Sequence[Claimable], holder: Holder, life_lock: LifeLock | None) -> None:
        """Take note of what was claimed."""
        self._grants.append(_Grant(devices, holder, life_lock))

    def close(self) -> None:
        """Give back exactly that. In a forked child nothing happens: there it belongs to the parent."""
        if self._grants:
            itself = identify(os.getpid())
            self._grants = [grant for grant in self._grants if grant.holder.process == itself]
        while self._grants:
            grant = self._grants[-1]
            self.coordination.release(grant.devices, grant.holder)
            if grant.life_lock is not None:
                grant.life_lock.close()
            self._grants.pop()

    def keep_over_exec(self) -> Collection[str]:
        """Let it outlast an exec of this process, which stays the owner; close() is never called then.

        Return the names of the grants, of which processes inside of that program may take shares.
        """
        for grant in self._grants:
            if grant.life_lock is not None:
                grant.life_lock.keep_over_exec()
        return [grant.holder.grant for grant in self._grants if grant.holder.grant]
