"""Who of the holders lives, and who uses what those have left that have not.

A command of `run` may leave others behind that carry the mark of its grant. Whether it does is found out by the
watchers beside it, or, if somebody has killed both, by whoever may look into that user's processes.
"""

import os
import time
from collections.abc import Callable, Collection

from externalresource.coordination import holders, inside, life_lock, process as processes
from externalresource.coordination.holders import Claim, Holder
from externalresource.coordination.process import Observer, Process
from externalresource.errors import CoordinationError
from externalresource.records import replace

_BREATH = 0.01  # seconds between two looks at what watchers are about to tell


class Judge:
    """Judges the holders that one coordination file names.

    `settle` finds out who uses what a holder has left, and writes that down, where no watchers do.
    """

    def __init__(
        self,
        path: str,
        device_class: str,
        gone: Callable[[Process, Observer], bool],
        settle: Callable[[Holder], Process | None],
    ) -> None:
        self._path = path
        self._class = device_class
        self._gone = gone
        self._settle = settle
        #: Those that have ended, and may have left their devices to others, of whom is not known yet.
        self._unsettled: list[Holder] = []

    def look(self) -> Callable[[Claim], Claim]:
        """Return what tells of each holder of a claim whether it lives. It looks at each process once."""
        here = processes.observer()
        dead: dict[object, bool] = {}

        def is_dead(holder: Holder) -> bool:
            process = holder.process
            key = process, process.pidfd_inode, holder.life_lock, holder.marked
            if key not in dead:
                dead[key] = self.is_dead(holder, here)
            return dead[key]

        def judged(claim: Claim) -> Claim:
            if not claim.understood:
                return claim
            seen = holders.seen(claim, here)
            lost = [holder for holder in seen if is_dead(holder)]
            if not lost and seen is claim.holders:
                return claim
            return replace(claim, holders=tuple([replace(each, living=not is_dead(each)) for each in seen]))

        return judged

    def is_dead(self, holder: Holder, here: Observer) -> bool:
        """Return True only if neither the holder nor, where they count, those that carry its mark use the device."""
        process, lock = holder.process, holder.life_lock
        judged = here.can_judge(process)
        if lock is None or (judged and not holder.marked):
            return self._gone(process, here)
        if processes.before_this_boot(process, here):
            return True
        if not holder.marked:
            return not life_lock.stands(self._path, lock)
        return self._has_left_nothing(holder, lock, here, lives=judged and not self._gone(process, here))

    def _has_left_nothing(self, holder: Holder, lock: str, here: Observer, *, lives: bool) -> bool:
        """Return True only if nobody uses the device of a command, or of what it has left it to.

        Whom it was left to may live on without the mark.
        """
        process = holder.process
        if lives and holder.left_by is None:
            return False
        if life_lock.nobody_is_left(self._path, lock):
            return True
        stands, of_host = life_lock.stands(self._path, lock), processes.is_of_host(process)
        if lives and stands:
            return False
        if here.can_judge(process) and (stands or of_host or _may_look(_first(holder), here)):
            self._unsettled.append(holder)
            return False
        # A container that is killed ends with its watchers and all that carried the mark in it.
        return not (lives or stands or of_host)

    def settles(self, end: float) -> bool:
        """Settle those that were found unsettled; return whether to look again: until `end` for what watchers tell."""
        unsettled, self._unsettled = self._unsettled, []
        here, again = processes.observer(), False
        for holder in {holder.grant: holder for holder in unsettled}.values():
            if life_lock.stands(self._path, holder.life_lock or "", missing=False):
                again = again or time.monotonic() < end
            elif _may_look(_first(holder), here):
                try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
                    again = self._settle(holder) != holder.process or again
                except CoordinationError:  # so it counts as held
                    pass
        if again:
            time.sleep(_BREATH)
        return again

    def heir(self, holder: Holder, above: Collection[int] | None, seconds: float | None) -> Process | None:
        """Return who carries the mark of a holder that has ended; None if nobody does. See `inside.bearer`."""
        first = _first(holder)
        if not processes.has_namespace(first):
            return None
        return inside.bearer(inside.mark(self._class, holder.grant or ""), first, above, seconds)


def _first(holder: Holder) -> Process:
    """Return by what those are known that carry the mark of a holder: the user, clock and namespace of the command."""
    if holder.left_by is None:
        return holder.process
    left_by = holder.left_by
    return replace(
        holder.process,
        start_time=left_by.get("start_time"),
        time_namespace=left_by.get("time_namespace"),
        pid_namespace=left_by.get("pid_namespace", holder.process.pid_namespace),
    )


def _may_look(process: Process, here: Observer) -> bool:
    """Return whether this process may look for the mark: in a container's processes only root may."""
    if process.pid_namespace != here.pid_namespace:
        return os.getuid() == 0 and not here.in_container and inside.has_all_users()
    return inside.is_its_user(process, here)
