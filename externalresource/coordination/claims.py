"""Claim devices, give them back, see who holds them: the coordination file under its lock.

Flink's own script edits the very file that it locks, and so hands out devices twice.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence

from externalresource.coordination import holders, ledger, life_lock, matching, process as processes, queue
from externalresource.coordination.holders import Claim, Holder
from externalresource.coordination.inside import check_inside, runs_around
from externalresource.coordination.life_lock import LifeLock
from externalresource.coordination.lock import Lock, Locked, Try, by_filelock, shielded
from externalresource.coordination.matching import Claimable, Wholes
from externalresource.coordination.process import Observer, Process, in_container
from externalresource.coordination.queue import Place
from externalresource.coordination.request import NeverEnoughError, Request, TooFewError, bounded, choice, refusal
from externalresource.errors import ConfigurationError, CoordinationError, NotEnoughDevicesError, too_few
from externalresource.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from externalresource.coordination.lock import Run, T
    from externalresource.coordination.matching import D
    from externalresource.coordination.request import Choose

DEFAULT_TIMEOUT = 9.0  # seconds: Flink's 10 for a discovery script, less its start
_PAUSE = 0.05, 0.5  # seconds between two looks of a waiting process: the first, and the longest
_FEW = 128  # claims, more than 16 GPUs have slices: a look at the holders of more costs more than all the rest
_LEAVING = 0.5  # seconds for the lock to be free when a waiting process gives up


def first(
    free: "Sequence[D]", claims: Sequence[Claim], amount: int, among: Iterable[Claimable] | None = None
) -> "Sequence[D]":
    """Return the first `amount` of the free devices, none a part of another; NotEnoughDevicesError if too few are.

    `among` are all devices, by which what each is a part of is followed upwards; without it the free ones.
    """
    del claims
    wholes = Wholes(free if among is None else among)
    wholes.check()
    return matching.apart(free, amount, wholes)


def new_grant() -> str:
    """Return a name that is never used again, for what an owner is granted at one time."""
    return os.urandom(8).hex()


class Coordination:
    """The devices of one class on this host, as the processes that share one coordination file divide them.

    `lock` tries to lock an open file without waiting, as `flock` does, too. `run` keeps interrupts from what happens
    under the lock. `in_container` tells whether there may be
    processes to which an owner's pid means nothing; it is given a life lock then. `pause` is called with seconds and a
    reason between two looks of a process that waits for devices. Within one of the `runs` (by default those that this
    process is inside of), the innermost that lives and has devices here, who claims gets a share of that one's.
    """

    def __init__(  # noqa: PLR0913 - all but two have a value that is right outside of the script and of tests
        self,
        path: str,
        device_class: str,
        *,
        lock: Try = by_filelock,
        run: "Run" = shielded,
        in_container: Callable[[], bool] = in_container,
        gone: Callable[[Process, Observer], bool] = processes.gone,
        pause: Callable[[float, str], None] = lambda seconds, _reason: time.sleep(seconds),
        runs: Sequence[frozenset[str]] | None = None,
    ) -> None:
        self.path = path
        self._class = device_class
        self.in_container = in_container
        self.run = run
        self._lock = Lock(path, lock, run)
        self._gone = gone
        self._pause = pause
        self._runs = runs_around() if runs is None else runs
        self._life_locks: dict[str, LifeLock] = {}
        self._known: tuple[str, Sequence[Claim]] = "", ()  # the file as last seen: mostly nobody has changed it since

    def claim(  # noqa: PLR0913 - what a driver leaves out has a value that is right for most
        self,
        devices: "Sequence[D]",
        amount: int,
        holder: Holder,
        *,
        choose: "Choose[D] | None" = None,
        deadline: float | None = None,
        wait: float = 0,
        suits: "Callable[[D], bool]" = lambda _device: True,
        among: Iterable[Claimable] | None = None,
    ) -> "list[D]":
        """Record `amount` of the devices for `holder` and return them: none that a living owner may hold.

        `choose` picks among the free ones, under the lock, or raises NotEnoughDevicesError if none of them will do now,
        by default the first; `deadline` (of `time.monotonic`) bounds the wait for it.
        With `wait` (seconds) devices that others hold are queued for, first come, first served; of them those that
        `suits` (which `choose` would not refuse at the moment) are kept meanwhile.
        `among` are all devices that the driver lists: what a device is a part of is followed upwards in these.
        Inside of a run that lives and has devices here the holder gets a share of these.
        Raises NotEnoughDevicesError, which says who holds them; CoordinationError if the file cannot be used.
        """
        if amount < 1:
            raise ConfigurationError(f"the amount must be a positive integer, not {amount}")
        if amount > len(devices):
            raise too_few(amount, len(devices))
        holder = holder if holder.grant else replace(holder, grant=new_grant())
        wholes = Wholes(devices if among is None else among)
        wholes.check()
        choose = choose or (lambda free, _claims, amount: matching.apart(free, amount, wholes))
        request = Request(devices, amount, holder, choose, suits, wholes, wait)
        end = time.monotonic() + wait
        try:
            return self._claim_now(request, deadline, None)
        except NotEnoughDevicesError as error:
            if wait <= 0 or isinstance(error, NeverEnoughError):
                raise
        return self._claim_in_queue(request, end, None if deadline is None else deadline + wait)

    def identity(self) -> tuple[int, int]:
        """Return by what its file is known under any path: device and inode of its lock file, made if it is missing."""
        return self._lock.identity(time.monotonic() + DEFAULT_TIMEOUT)

    def release(self, devices: Iterable[Claimable] | None, holder: Holder, *, deadline: float | None = None) -> int:
        """Give back what this process holds of the devices, or of all; return of how many.

        Only what it holds by this grant, if the holder names one.
        """
        given_back = None if devices is None else list(devices)

        def stays(other: Holder) -> bool:
            return other.process != holder.process or holder.grant not in (None, other.grant)

        def after(claim: Claim) -> Claim | None:
            named = given_back is None or any(matching.same(claim, device) for device in given_back)
            return holders.left(claim, stays) if named else claim

        return len(self._strike_out(after, deadline))

    def drop(
        self, which: Callable[[Claim, Holder], bool], *, deadline: float | None = None
    ) -> list[tuple[Claim, Holder]]:
        """Strike out the holders of claims for which `which` answers True, and return them, each with its claim."""
        judged = self._judge()
        dropped: list[tuple[Claim, Holder]] = []

        def after(claim: Claim) -> Claim | None:
            shown = judged(claim)

            def stays(holder: Holder) -> bool:
                if which(shown, holder):
                    dropped.append((shown, holder))
                    return False
                return True

            return _left(claim, shown, stays)

        self._strike_out(after, deadline)
        return dropped

    def held(self, process: Process | None = None) -> list[Claim]:
        """Return the claims, or those of one process; each holder tells whether it lives.

        Needs no lock: the file is only ever replaced whole.
        """
        claims = map(self._judge(), self._read())
        return [claim for claim in claims if process is None or process in [each.process for each in claim.holders]]

    def _strike_out(self, after: Callable[[Claim], Claim | None], deadline: float | None) -> list[Claim]:
        """Replace each claim by what `after` leaves of it; return those that have changed, as they were."""

        def struck_out(locked: Locked) -> list[Claim]:
            claims = self._read()
            left = [(claim, after(claim)) for claim in claims]
            self._write(locked, claims, [kept for _, kept in left if kept is not None])
            return [claim for claim, kept in left if kept is not claim]

        return self._under_lock(struck_out, deadline)

    def _life_lock(self, holder: Holder) -> LifeLock | None:
        """Return a lock by which other containers, where the holder's pid means nothing, see that it lives.

        Made only under the lock, lest one that waits and is killed leave it.
        """
        if holder.life_lock is not None or not self.in_container():
            return None
        itself = holder.process.pid == os.getpid()
        life = LifeLock(self.path, inherited=not itself)
        if not itself:
            try:
                life.post(holder.process)
            except CoordinationError:
                life.close()
                raise
        return life

    def _claim_in_queue(self, request: Request, end: float, deadline: float | None) -> "list[Any]":
        """Claim under a place in the queue, which is kept by a lock and given up if this ends with an error."""
        life = LifeLock(self.path)
        try:
            return self._claim_in_turn(request, life.name, end, deadline)
        except BaseException:
            self._leave(life.name)
            raise
        finally:
            life.close()

    def _claim_in_turn(self, request: Request, place: str, end: float, deadline: float | None) -> "list[Any]":
        """Claim as soon as those before leave enough; NotEnoughDevicesError at `end`."""
        seconds, longest = _PAUSE
        while True:
            now = time.monotonic()
            patience = now + DEFAULT_TIMEOUT
            try:
                return self._claim_now(request, patience if deadline is None else min(patience, deadline), place)
            except NeverEnoughError:
                raise
            except NotEnoughDevicesError as error:
                if now >= end:
                    raise NotEnoughDevicesError(f"{error}; waited {request.wait:g} s for them") from None
                reason = str(error)
            self._pause(max(0, min(seconds, end - time.monotonic())), reason)
            seconds = min(seconds * 2, longest)

    def _leave(self, place: str) -> None:
        """Give up a place. Whoever comes next does it if the lock is not free: a place without its lock is none."""

        def leave(_locked: Locked) -> None:
            places = queue.read(self.path)
            before, behind = queue.around(places, place)
            self._write_queue(places, [*before, *behind])

        try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
            self._under_lock(leave, time.monotonic() + _LEAVING)
        except CoordinationError:
            pass

    def _claim_now(self, request: Request, deadline: float | None, name: str | None) -> "list[Any]":
        """Claim what is free and not kept for those who came before, or have a place in the queue under `name`."""

        def claimed_now(locked: Locked) -> "list[Any]":
            claimed = self._read()
            bounded_request = self._within(request, claimed)
            places = queue.read(self.path)
            before, behind = queue.around(places, name)
            try:
                claims, chosen = self._chosen(bounded_request, claimed, before)
            except NotEnoughDevicesError:
                if name is not None:
                    suitable = [device for device in bounded_request.devices if request.suits(device)]
                    place = queue.place(name, request.amount, suitable, bounded_request.line, request.wholes)
                    self._write_queue(places, [*before, place, *behind])
                raise
            self._write_queue(places, [*before, *behind])  # before the claim, which stands once it is written
            self._record(locked, bounded_request, claimed, claims, chosen)
            return chosen

        return self._under_lock(claimed_now, deadline)

    def _record(
        self, locked: Locked, request: Request, before: Sequence[Claim], claims: Sequence[Claim], chosen: "list[Any]"
    ) -> None:
        """Write that what was chosen is the holder's, with a life lock if others need one to see that it lives."""
        life = self._life_lock(request.holder)
        try:
            holder = replace(request.holder, life_lock=life.name) if life else request.holder
            self._write(locked, before, self._granted(request, claims, chosen, holder))
        except BaseException:
            if life:
                life.close()
            raise
        if life:
            self._life_locks[life.name] = life

    def _within(self, request: Request, claims: Sequence[Claim]) -> Request:
        """Return the request bounded by what the run around it has here; CoordinationError if it may not be in that."""
        here = processes.observer()
        for grants in reversed(self._runs):
            held = [(claim, each) for claim in claims for each in holders.seen(claim, here) if each.grant in grants]
            living = [(claim, each.process) for claim, each in held if not self._dead(each, here)]
            if living:
                check_inside([process for _, process in living], here)
                return bounded(request, grants, living)
        return request

    def _granted(
        self, request: Request, claims: Sequence[Claim], chosen: "Sequence[Any]", holder: Holder
    ) -> Sequence[Claim]:
        """Return the claims with what was chosen among them."""
        holder = replace(holder, since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        if not request.within:
            return ledger.append(claims, [request.claim_of(device, holder, self._class) for device in chosen])
        return [
            holders.shared(claim, request.within, holder)
            if any(matching.same(claim, device) for device in chosen)
            else claim
            for claim in claims
        ]

    def _write_queue(self, before: Sequence[Place], after: Sequence[Place]) -> None:
        if before != after:
            queue.write(self.path, after)

    def _chosen(
        self, request: Request, before: Sequence[Claim], ahead: Sequence[Place]
    ) -> "tuple[Sequence[Claim], list[Any]]":
        """Return the claims that stand, and what the request gets beside them; NotEnoughDevicesError if too little."""
        if len(before) > _FEW:
            try:
                return before, choice(request, before, ahead)
            except NotEnoughDevicesError:
                pass
        judged = self._judge()
        left = [_left(claim, judged(claim), lambda holder: holder.living) for claim in before]
        claims = [claim for claim in left if claim is not None]
        try:
            return claims, choice(request, claims, ahead)
        except TooFewError as error:
            raise NotEnoughDevicesError(refusal(request, claims, error.free, ahead)) from None

    def _under_lock(self, section: "Callable[[Locked], T]", deadline: float | None) -> "T":
        return self._lock.during(section, time.monotonic() + DEFAULT_TIMEOUT if deadline is None else deadline)

    def _read(self) -> list[Claim]:
        text = ledger.content(self.path)
        known, claims = self._known
        if text == known:
            return list(claims)
        claims = ledger.parse(text, self.path)
        for claim in claims:
            if claim.device_class not in (None, self._class):
                raise CoordinationError(
                    f"{self.path} coordinates {claim.device_class!r}, not {self._class!r}: "
                    "one file serves one class of devices; choose another file"
                )
        self._known = text, claims
        return list(claims)

    def _write(self, locked: Locked, before: Sequence[Claim], after: Sequence[Claim]) -> None:
        """Write the claims if they differ, and free the life locks of those that are no more."""
        if len(before) == len(after) and list(before) == list(after):
            return
        self._known = ledger.write(self.path, after, locked.take_next), after
        were, are = holders.life_locks(before), holders.life_locks(after)
        for name in were - are:
            if name in self._life_locks:
                self._life_locks.pop(name).close()
            else:
                life_lock.remove(self.path, name)
        if were or are:
            life_lock.sweep(self.path, are)

    def _judge(self) -> Callable[[Claim], Claim]:
        """Return what tells of each holder of a claim whether it lives. It looks at each process once."""
        here = processes.observer()
        dead: dict[object, bool] = {}

        def is_dead(holder: Holder) -> bool:
            process = holder.process
            key = process, process.pidfd_inode, holder.life_lock, holder.until_children_exit
            if key not in dead:
                dead[key] = self._dead(holder, here)
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

    def _dead(self, holder: Holder, here: Observer) -> bool:
        """Return True only if neither the holder nor, where they count, its children can use the device any more."""
        process, lock = holder.process, holder.life_lock
        judged = here.can_judge(process)
        if lock is None or (judged and not holder.until_children_exit):
            return self._gone(process, here)
        if processes.before_this_boot(process, here):
            return True
        return not (judged and not self._gone(process, here)) and not life_lock.stands(self.path, lock)


def _left(claim: Claim, judged: Claim, stays: Callable[[Holder], bool]) -> Claim | None:
    """Return what is left of a claim, of which we know who lives: the very same if nobody goes."""
    kept = holders.left(judged, stays)
    return claim if kept is judged else kept
