"""Every order of small cases: two or three processes that claim, wait, release and die, one step at a time.

Each process stops before each step that touches the coordination files (stepping.py). All orders are tried in which a
process that could have gone on is stopped for another one at most two times; the death of a process at each step of
those with at most one such switch, or with none where there are three processes. A judge that never looks at the files
sees to it that no device is in two hands or lost, and that nobody waits for ever, is refused what is free, or overtakes
who waits.

A word such as `A17B40a` names an order: A makes 17 steps, B 40, A is killed; `A!` is a step of A that the disk fails to
make. --replay runs it again.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepping import MOST, Event

if TYPE_CHECKING:  # else only once that is broken which they import
    from one_order import Host, Run, Step
    from small_cases import Case

_QUEUE_FIRST = """\
            queue.change(self.path, places, [*before, *behind])  # before the claim, which stands once it is written
"""
_THEN_LEDGER = """\
            self._record(locked, bounded_request, claimed, claims, chosen)
"""
#: What each of the breaks changes: a module, a text in it, and what stands there instead.
BREAKS = {
    "lock": (
        "lock",
        "    except BlockingIOError:\n        return False\n",
        "    except BlockingIOError:\n        return True\n",
    ),
    "inode": ("lock", "        return os.path.samestat(os.lstat(path), os.fstat(descriptor))", "        return True"),
    "order": ("claims", _QUEUE_FIRST + _THEN_LEDGER, _THEN_LEDGER + _QUEUE_FIRST),
}
_HEAD = f"{'case':<33}{'processes':>10}{'steps':>7}{'orders':>8}{'alike':>8}{'deaths':>8}{'errors':>8}{'seconds':>9}"
_APART = "INTERLEAVINGS_APART"  # says that this runs in a pid namespace of its own
_SUMS = ("orders", "alike", "deaths", "errors", "seconds")
_TOKEN = re.compile(r"([A-Z])(\d+)|([A-Z]!|[a-z])")


def break_it(which: str) -> None:
    """Execute a module of the package with another text in it. To be called before anything imports that."""
    module, text, instead = BREAKS[which]
    spec = importlib.util.find_spec(f"externalresource.coordination.{module}")
    assert spec is not None
    assert spec.origin is not None
    assert spec.name not in sys.modules
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert source.count(text) == 1, f"{spec.origin} has no longer what --break {which} changes"
    sys.modules[spec.name] = broken = importlib.util.module_from_spec(spec)
    exec(compile(source.replace(text, instead), spec.origin, "exec"), broken.__dict__)
    setattr(sys.modules["externalresource.coordination"], module, broken)


@dataclass(frozen=True, slots=True)
class Order:
    """Who starts, and what is then not as it goes by itself: by the number of the step, who makes it."""

    start: str
    changes: tuple[tuple[int, str], ...] = ()

    @property
    def switches(self) -> int:
        return sum(len(token) == 1 and token.isupper() for _, token in self.changes)

    @property
    def last(self) -> int:
        return self.changes[-1][0] if self.changes else 0

    def decide(self, number: int, goes_on: str) -> tuple[str, int]:
        """Return who makes the step of that number, and how many from there to the next change."""
        token = dict(self.changes).get(number) or (goes_on if number else self.start)
        return token, min([at - number for at, _ in self.changes if at > number], default=MOST)

    def changed(self, number: int, token: str) -> "Order":
        return Order(self.start, (*self.changes, (number, token)))


@dataclass(slots=True)
class Tried:
    """What was tried of a case."""

    case: "Case"
    steps: int = 0
    orders: int = 0
    #: Orders that were left out, as what they change makes no difference.
    alike: int = 0
    deaths: int = 0
    errors: int = 0
    seconds: float = 0
    #: The first one in which something was found.
    found: "Run | None" = None


class Explorer:
    """Tries the orders of a case from one start, until something is found."""

    def __init__(self, host: "Host", switches: int, deaths: int) -> None:
        self._host, self._switches, self._deaths = host, switches, deaths
        self.tried = Tried(host.case)

    def explore(self, order: Order) -> "Run":
        """Try an order, and those that change what comes after the last change of it."""
        run = self._run(order)
        if order.switches < self._switches:
            for letter in self._host.case.letters + self._host.case.later:
                self._switch_to(letter, order, run)
        if order.switches <= self._deaths:
            for number in range(order.last + 1, len(run.steps)):
                self._end_at(number, order, run)
        return run

    def _run(self, order: Order) -> "Run":
        if self.tried.found:
            return self.tried.found
        run = self._host.run(order.decide)
        self.tried.steps = max(self.tried.steps, len(run.steps))
        self.tried.found = run if run.fault else None
        return run

    def _switch_to(self, letter: str, order: Order, run: "Run") -> None:
        """Take the process that makes a step away before it, for each step, from the last one on.

        Whether a step comes before what another process does, or after it, makes no difference if they do not meet.
        """
        meanwhile: list[Event] | None = None
        for number in reversed(range(order.last + 1, len(run.steps))):
            step = run.steps[number]
            if step.letter == letter or letter not in run.enabled[number]:
                continue
            if step.letter != run.steps[min(number + 1, len(run.steps) - 1)].letter:
                meanwhile = None  # it went by itself to another one after this step
            if meanwhile is not None and step.event.paths and not any(map(step.event.meets, meanwhile)):
                self.tried.alike += 1
                continue
            other = self.explore(order.changed(number, letter))
            self.tried.orders += 1
            meanwhile = list(_until(step.letter, other.steps[number:]))

    def _end_at(self, number: int, order: Order, run: "Run") -> None:
        step, before = run.steps[number], run.steps[number - 1]
        if before.letter == step.letter and not before.event.changes:
            self.tried.alike += 1  # to a death before that step, which nobody can see
        elif step.letter not in self._host.case.later[1:]:
            self._run(order.changed(number, step.letter.lower()))
            self.tried.deaths += 1
        if self._host.case.fails and step.event.can_fail:
            self._run(order.changed(number, f"{step.letter}!"))
            self.tried.errors += 1


def _until(letter: str, steps: "Sequence[Step]") -> Iterator[Event]:
    """Yield what the others do before the process with that letter makes a step."""
    for step in steps:
        if step.letter == letter:
            return
        yield step.event


@dataclass(frozen=True, slots=True)
class Task:
    """The orders of a case that begin with one of its processes."""

    case: str
    start: str
    switches: int
    #: Switches in an order up to which deaths are tried; of none for less than none.
    deaths: int

    def __call__(self) -> Tried:
        from one_order import Host, adopt_orphans, end_with_parent

        began = time.monotonic()
        adopt_orphans()
        end_with_parent()
        with _folder() as folder, closing(Host(_cases([self.case])[0], folder)) as host:
            explorer = Explorer(host, self.switches, self.deaths)
            explorer.explore(Order(self.start))
        explorer.tried.orders += 1
        explorer.tried.seconds = time.monotonic() - began
        return explorer.tried


def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder in memory where there is one: files are made and removed there by the million."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


def _tokens(word: str) -> list[str]:
    """Return the steps that a word names."""
    if not re.fullmatch(f"(?:{_TOKEN.pattern})+", word):
        raise click.BadParameter(f"{word!r} is no order: one looks like A17B40a")
    return [token for letter, count, other in _TOKEN.findall(word) for token in [letter] * int(count or 0) or [other]]


def _replay(case: "Case", word: str) -> bool:
    """Show an order step by step; return whether something is found."""
    from one_order import Host, adopt_orphans

    tokens = _tokens(word)

    def follow(number: int, goes_on: str) -> tuple[str, int]:
        return (tokens[number] if number < len(tokens) else goes_on), 1

    adopt_orphans()
    with _folder() as folder, closing(Host(case, folder)) as host:
        run = host.run(follow)
    for number, step in enumerate(run.steps):
        for said in [said for at, said in run.news if at == number]:
            click.echo(f"      {said}")
        click.echo(f"{number:>4}  {step.token:<3}{step.event}")
    for said in [said for at, said in run.news if at == len(run.steps)]:
        click.echo(f"      {said}")
    click.echo(run.fault or "nothing is found")
    return bool(run.fault)


def _try(tasks: Sequence[Task], processes: int) -> Iterator[Tried]:
    """Yield what was tried of each case, when all of its tasks are done."""
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        running: dict[str, list[Future[Tried]]] = {}
        for task in tasks:
            running.setdefault(task.case, []).append(pool.submit(task))
        try:
            for futures in running.values():
                yield _together([future.result() for future in futures])
        finally:
            pool.shutdown(cancel_futures=True)


def _together(several: Sequence[Tried]) -> Tried:
    first = several[0]
    sums = {name: sum(getattr(each, name) for each in several) for name in _SUMS}
    found = next((each.found for each in several if each.found), None)
    return Tried(first.case, max(each.steps for each in several), found=found, **sums)


@click.command(help=__doc__)
@click.option("--case", "names", multiple=True, help="Only this one; can be given several times.")
@click.option("--quick", is_flag=True, help="At most one switch, and few deaths.")
@click.option("--break", "broken", type=click.Choice([*BREAKS]), help="Break this of the package, which must be found.")
@click.option("--replay", "word", help="Run this order of the one case, and show its steps.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True, help="Cases at a time.")
def main(names: Sequence[str], broken: str | None, word: str | None, processes: int, *, quick: bool) -> None:
    _leave_other_processes()
    if broken:
        break_it(broken)
    cases = [case for case in _cases(names) if _is_possible(case)]
    if not cases:
        raise click.ClickException("no case is left to be tried")
    if word:
        if len(cases) != 1:
            raise click.UsageError("--replay needs the one --case of which it is an order")
        sys.exit(_replay(cases[0], word))
    sys.exit(_try_all(cases, processes, broken, quick=quick))


def _leave_other_processes() -> None:
    """Go on in a pid namespace, where one is permitted: what a command has left is looked for among all processes."""
    apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if _APART in os.environ or not shutil.which(apart[0]):
        return
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode == 0:
        os.execvpe(apart[0], [*apart, sys.executable, *sys.argv], os.environ | {_APART: "1"})


def _is_possible(case: "Case") -> bool:
    if case.later and _APART not in os.environ:
        click.echo(f"left out: {case.name}, which needs a pid namespace of its own, and this system grants none")
        return False
    return True


def _cases(names: Sequence[str]) -> list["Case"]:
    from small_cases import CASES

    for name in names:
        if name not in [case.name for case in CASES]:
            raise click.BadParameter(f"there is no case {name!r}, but {', '.join(repr(case.name) for case in CASES)}")
    return [case for case in CASES if not names or case.name in names]


def _try_all(cases: Sequence["Case"], processes: int, broken: str | None, *, quick: bool) -> bool:
    """Show what was tried; return whether something was found, after which nothing more is tried of what is broken."""
    click.echo(_HEAD)
    began, found, total = time.monotonic(), False, Tried(cases[0])
    rounds = [(1, 1)] if quick else [(1, 2), (2, 2), (1, 0)] if broken else [(2, 0)]
    for switches, fewer in rounds:
        tasks = [Task(case.name, start, switches, case.deaths - fewer) for case in cases for start in case.starts]
        for tried in _try(tasks, processes):
            _show(tried.case.name, len(tried.case.letters + tried.case.later), tried)
            total = _together([total, tried])
            found = found or _show_found(tried, broken)
            if found and broken:
                return True
    _show("all", "", replace(total, seconds=time.monotonic() - began))
    return found


def _show(name: str, processes: object, tried: Tried) -> None:
    click.echo(
        f"{name:<33}{processes:>10}{tried.steps:>7}{tried.orders:>8}{tried.alike:>8}{tried.deaths:>8}{tried.errors:>8}"
        f"{tried.seconds:>9.1f}"
    )


def _show_found(tried: Tried, broken: str | None) -> bool:
    if tried.found is None:
        return False
    again = f"--break {broken} " if broken else ""
    click.echo(
        f"found: {tried.found.fault}\n  to see it: {again}--case {tried.case.name!r} --replay {tried.found.word}"
    )
    return True


if __name__ == "__main__":
    main()
