"""Claim devices, give them back, see who holds them: the coordination file under its lock.

Flink's own script edits the very file that it locks, and so hands out devices twice.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from externalresource.coordination import (
    holders,
    ledger,
    life_lock,
    matching,
    process as processes,
    queue,
    request as requests,
)
from externalresource.coordination.holders import Claim, Holder
from externalresource.coordination.inside import check_inside, runs_around
from externalresource.coordination.judging import Judge
from externalresource.coordination.life_lock import LifeLock
from externalresource.coordination.lock import Lock, Locked, LockedError, Try, by_filelock, shielded
from externalresource.coordination.matching import Claimable
from externalresource.coordination.process import Observer, Process, in_container
from externalresource.coordination.queue import Place
from externalresource.coordination.request import NeverEnoughError, Request, TooFewError
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from externalresource.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from externalresource.coordination.lock import Run, T
    from externalresource.coordination.matching import D
    from externalresource.coordination.request import Choose

DEFAULT_TIMEOUT = 9.0  # seconds: Flink's 10 for a discovery script, less its start
_TRY = 0.05  # seconds for which a waiting process tries the lock before it pauses again
_SETTLING = 3.0  # seconds in which it shows who uses what a command of `run` has left
_FEW = 128  # claims, more than 16 GPUs have slices: a look at the holders of more costs more than all the rest
_LEAVING = 0.5  # seconds for the lock to be free when a waiting process gives up


class Coordination:
    """The devices of one class on this host, as the processes that share one coordination file divide them.

    `lock` tries to lock an open file without waiting, as `flock` does, too. `run` keeps interrupts from what happens
    under the lock. `in_container` tells whether there may be processes to which an owner's pid means nothing; it is
    given a life lock then. `pause` is called with seconds and a reason between two looks of a process that waits for
    devices. Within one of the `runs` (by default those that this process is inside of), the innermost that lives and
    has devices here, who claims gets a share of that one's.
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
        self.device_class = device_class
        self.in_container = in_container
        self.run = run
        self.is_first = False  # for `pause`: nobody who waits came before this process, as far as it knows
        self._lock = Lock(path, lock, run)
        self.judge = Judge(path, device_class, gone, lambda holder: self.heir(holder, None, _SETTLING))
        self._pause = pause
        self._runs = runs_around() if runs is None else runs
        self._life_locks: dict[str, LifeLock] = {}
        self._places: dict[str | None, LifeLock] = {}
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
        `suits` (which `choose` would not refuse at the moment) are kept meanwhile. `pause` may add devices that appear
        to the list, and exchange some.
        `among` are all devices that the driver lists: what a device is a part of is followed upwards in these.
        Inside of a run that lives and has devices here the holder gets a share of these.
        Raises NotEnoughDevicesError, which says who holds them; CoordinationError if the file cannot be used.
        """
        request = requests.checked(devices, amount, holder, choose, suits, among, wait)
        end = time.monotonic() + wait
        deadline = time.monotonic() + DEFAULT_TIMEOUT if deadline is None else deadline
        if wait <= 0:
            return self._claim_settled(request, deadline)
        try:
            return self._claim_now(request, min(deadline, time.monotonic() + _TRY), None, tries_again=True)
        except NeverEnoughError:
            raise
        except (NotEnoughDevicesError, LockedError):
            return self._claim_in_queue(request, end, max(deadline, end))

    def identity(self) -> tuple[int, int]:
        """Return by what its file is known under any path: device and inode of its lock file, made if it is missing."""
        return self._lock.identity(time.monotonic() + DEFAULT_TIMEOUT)

    def release(self, devices: Iterable[Claimable] | None, holder: Holder, *, deadline: float | None = None) -> int:
        """Give back what this process holds of the devices, or of all; return of how many.

        Only what it holds by this grant, if the holder names one.
        """
        self._end_place(holder.grant)
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
        self.held()  # which finds out who uses what was left
        judged = self.judge.look()
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
        end = time.monotonic() + _SETTLING
        claims = [*map(self.judge.look(), self._read())]
        while self.judge.settles(end):
            claims = [*map(self.judge.look(), self._read())]
        return [claim for claim in claims if process is None or process in [each.process for each in claim.holders]]

    def heir(self, holder: Holder, above: Collection[int] | None, seconds: float | None) -> Process | None:
        """Return who uses what a holder has that has ended, and tell everybody by the file; None if nobody does.

        CoordinationError if that cannot be told. See `inside.bearer`.
        """
        user = self.judge.heir(holder, above, seconds)

        def after(claim: Claim) -> Claim | None:
            return holders.handed_on(claim, holder, user)

        try:  # of a lone one watchers tell by its lock, and Flink's script by its pid
            if user or seconds or any(after(claim) is not claim and not claim.is_lone for claim in self._read()):
                self._strike_out(after, None)
        except CoordinationError:
            if seconds:
                raise
        return user

    def _strike_out(self, after: Callable[[Claim], Claim | None], deadline: float | None) -> list[Claim]:
        """Replace each claim by what `after` leaves of it; return those that have changed, as they were."""

        def struck_out(locked: Locked) -> list[Claim]:
            claims = self._read()
            left = [(claim, after(claim)) for claim in claims]
            self._write(locked, claims, [kept for _, kept in left if kept is not None])
            return [claim for claim, kept in left if kept is not claim]

        return self._under_lock(struck_out, deadline)

    def _claim_settled(self, request: Request, deadline: float) -> "list[Any]":
        """Claim now; too little is free only when it shows who uses what has just been left."""
        end = min(deadline, time.monotonic() + _SETTLING)
        while True:
            try:
                return self._claim_now(request, deadline, None)
            except NeverEnoughError:
                raise
            except NotEnoughDevicesError:
                if not self.judge.settles(end):
                    raise

    def _claim_in_queue(self, request: Request, end: float, deadline: float) -> "list[Any]":
        """Claim under a place in the queue, which is kept by a lock and given up if this ends with an error."""
        life = self.run(lambda: self._begin_place(request.holder.grant))
        view = queue.View(self.path, life.name)

        def attempt(now: float) -> "list[Any]":
            self.judge.settles(now)
            request.wholes.read_again()
            if view.placed:
                self._look(request, view, life.name)
            until = min(deadline, now + _TRY * view.placed)  # a herd that comes at once must not fight for the lock
            try:
                return self._claim_now(request, until, life.name, tries_again=now < deadline)
            except NotEnoughDevicesError:
                view.placed = True
                raise

        try:
            return requests.patiently(request, attempt, view, self._pause, end, deadline)
        except BaseException:
            self._leave(life.name)
            raise
        finally:
            self._end_place(request.holder.grant)

    def _begin_place(self, grant: str | None) -> LifeLock:
        """Make the lock of a place. It is noted by the grant, by which whoever was interrupted gives up all it had."""
        self._places[grant] = LifeLock(self.path)
        return self._places[grant]

    def _end_place(self, grant: str | None) -> None:
        if life := self._places.get(grant):
            self.run(life.close)
            self._places.pop(grant, None)

    def _look(self, request: Request, view: queue.View, name: str) -> None:
        """Raise NotEnoughDevicesError if there is nothing to be had, and its place is as it should be.

        Needs no lock, and is not certain.
        """
        claims = self._read()
        request = self._within(request, claims)
        ahead, own = view.look(request.devices, request.line, request.wholes)
        self.is_first = not any(queue.waits(self.path, place) for place in ahead)
        if own == requests.place_of(request, name):
            self._chosen(request, claims, ahead, requests.offered)

    def _leave(self, name: str) -> None:
        """Give up a place. Whoever comes next does it if the lock is not free: a place without its lock is none."""

        def leave(_locked: Locked) -> None:
            places = queue.read(self.path)
            before, behind = queue.around(places, name)
            queue.change(self.path, places, [*before, *behind])

        try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
            self._under_lock(leave, time.monotonic() + _LEAVING, tries_again=True)
        except CoordinationError:
            pass

    def _claim_now(
        self, request: Request, deadline: float, name: str | None, *, tries_again: bool = False
    ) -> "list[Any]":
        """Claim what is free and not kept for those who came before, or have a place in the queue under `name`."""

        def claimed_now(locked: Locked) -> "list[Any]":
            claimed = self._read()
            bounded_request = self._within(request, claimed)
            places = queue.read(self.path)
            before, behind = queue.around(places, name)
            try:
                claims, chosen = self._chosen(bounded_request, claimed, before, requests.choice)
            except NotEnoughDevicesError:
                if name is not None:
                    queue.change(self.path, places, [*before, requests.place_of(bounded_request, name), *behind])
                raise
            queue.change(self.path, places, [*before, *behind])  # before the claim, which stands once it is written
            self._record(locked, bounded_request, claimed, claims, chosen)
            return chosen

        return self._under_lock(claimed_now, deadline, tries_again=tries_again)

    def _record(
        self, locked: Locked, request: Request, before: Sequence[Claim], claims: Sequence[Claim], chosen: "list[Any]"
    ) -> None:
        """Write that what was chosen is the holder's, with a life lock if others need one to see that it lives.

        That is made only under the lock, lest one that waits and is killed leave it.
        """
        needed = request.holder.life_lock is None and self.in_container()
        life = life_lock.beside(self.path, request.holder.process) if needed else None
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
            living = [(claim, each) for claim, each in held if not self.judge.is_dead(each, here)]
            if living:
                check_inside([each.process for _, each in living], here)
                return requests.bounded(request, grants, living)
        return request

    def _granted(
        self, request: Request, claims: Sequence[Claim], chosen: "Sequence[Any]", holder: Holder
    ) -> Sequence[Claim]:
        """Return the claims with what was chosen among them."""
        holder = replace(holder, since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        if not request.within:
            return ledger.append(claims, [request.claim_of(device, holder, self.device_class) for device in chosen])
        return [
            holders.shared(claim, request.within, holder)
            if any(matching.same(claim, device) for device in chosen)
            else claim
            for claim in claims
        ]

    def _chosen(
        self, request: Request, before: Sequence[Claim], ahead: Sequence[Place], decide: "Callable[..., list[Any]]"
    ) -> "tuple[Sequence[Claim], list[Any]]":
        """Return the claims that stand, and what the request gets beside them; NotEnoughDevicesError if too little."""

        def waits(place: Place) -> bool:
            return queue.waits(self.path, place)

        if len(before) > _FEW:
            try:
                return before, decide(request, before, ahead, waits)
            except NotEnoughDevicesError:
                pass
        judged = self.judge.look()
        left = [_left(claim, judged(claim), lambda holder: holder.living) for claim in before]
        claims = [claim for claim in left if claim is not None]
        try:
            return claims, decide(request, claims, ahead, waits)
        except TooFewError as error:
            raise NotEnoughDevicesError(requests.refusal(request, claims, error.free, ahead)) from None

    def _under_lock(
        self, section: "Callable[[Locked], T]", deadline: float | None, *, tries_again: bool = False
    ) -> "T":
        deadline = time.monotonic() + DEFAULT_TIMEOUT if deadline is None else deadline
        return self._lock.during(section, deadline, tries_again=tries_again)

    def _read(self) -> list[Claim]:
        text = ledger.content(self.path)
        known, claims = self._known
        if text == known:
            return list(claims)
        claims = ledger.parse(text, self.path)
        for claim in claims:
            if claim.device_class not in (None, self.device_class):
                raise CoordinationError(
                    f"{self.path} coordinates {claim.device_class!r}, not {self.device_class!r}: "
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
            try:  # noqa: SIM105 - contextlib costs the discovery script a millisecond
                life_lock.sweep(self.path, are.union(queue.names(self.path)))
            except CoordinationError:  # the queue cannot be read; but what was written stands
                pass


def _left(claim: Claim, judged: Claim, stays: Callable[[Holder], bool]) -> Claim | None:
    """Return what is left of a claim, of which we know who lives: the very same if nobody goes."""
    kept = holders.left(judged, stays)
    return claim if kept is judged else kept
