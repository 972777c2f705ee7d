"""As many owners as GPUs ask at once, and live until all are answered: each must get one, and all different ones.

Ours and Flink's run in turn, each with a coordination file of its own, and share one stand-in for nvidia-smi. Nobody
is hurried here; how many were answered within the 10 seconds that Flink's driver waits is told beside.

With --wait they queue for 8 devices instead, and each has its own for a moment. They are forks that claim for
themselves; what a start costs is measured with `externalresource run`.
"""

import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

import contenders
import owners
import waiting
from contenders import Script
from owners import Answer, Asker

_PATIENCE = 900  # seconds until a script that says nothing is an error of this benchmark
_FLINKS_PATIENCE = 10  # seconds
_DEVICES = 8  # that are waited for
_STARTS = 30  # of `run`, that need not wait
_GOAL = 2.0  # times the processor time of those that need not wait
_AT_ONCE = 2.0  # seconds in which the first of the queue is to see a free device


@dataclass(frozen=True, slots=True)
class Result:
    script: str
    granted: int
    different: int
    #: How many had it as early as Flink's driver wants it.
    in_time: int
    #: How many scripts ended without a device, by what they said.
    failures: Mapping[str, int]
    #: Until the last one was answered.
    seconds: float


def run(script: Script, environment: Mapping[str, str], size: int) -> Result:
    """Let `size` owners ask at once."""
    gate, release = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, gate)
        with os.fdopen(release, "wb"):
            herd = [_start((gate, release), script, environment, stack) for _ in range(size)]
            began = time.monotonic()
        answers = [asker.answer(_PATIENCE) for asker in herd]
    given = [answer for answer in answers if answer.status == 0]
    return Result(
        script=script.name,
        granted=len(given),
        different=len({answer.stdout.strip() for answer in given}),
        in_time=sum(answer.answered - answer.asked <= _FLINKS_PATIENCE for answer in given),
        failures=Counter(_said(answer) for answer in answers if answer.status != 0),
        seconds=max(answer.answered for answer in answers) - began,
    )


def _start(gate: tuple[int, int], script: Script, environment: Mapping[str, str], stack: ExitStack) -> Asker:
    asker = Asker(script.words(1), environment, gate=gate)
    stack.callback(asker.end)
    return asker


def _said(answer: Answer) -> str:
    return (answer.stderr or answer.stdout).strip()[:200] or f"nothing, status {answer.status}"


def report(result: Result, size: int) -> None:
    click.echo(
        f"{result.script:<9}{size:>7}{result.granted:>9}{result.different:>11}{size - result.granted:>8}"
        f"{result.in_time:>9}{result.seconds:>9.2f}"
    )
    for said, count in result.failures.items():
        click.echo(f"    failed {count} times: {said}")


def wait(size: int, hold: float) -> bool:
    """Let `size` wait; return whether all were served in their order."""
    result = waiting.wait(size, _DEVICES, hold)
    run = waiting.start(_STARTS)
    ratio = (run + result.processor) / run
    click.echo(f"{'waiters':>7}{'served':>8}{'seconds':>9}{'a run, ms':>11}{'its wait, ms':>14}{'ratio':>7}  goal")
    click.echo(
        f"{size:>7}{result.served:>8}{result.seconds:>9.2f}{1000 * run:>11.1f}{1000 * result.processor:>14.1f}"
        f"{ratio:>7.2f}{_GOAL:>6g}  {'met' if ratio <= _GOAL else 'missed'}"
    )
    in_order = result.served == size and result.ahead < _DEVICES
    click.echo(
        f"\nserved in their order: {'yes' if in_order else 'no'}; "
        f"when one was served, at most {result.ahead} that came earlier still waited,\n"
        f"each for another of the {_DEVICES} devices\n"
        f"longest that a device lay idle: {result.idle:.2f} s, goal {_AT_ONCE:g}"
    )
    return in_order


@click.command(help=__doc__)
@click.option("--size", type=click.IntRange(1, 1024), help="Owners, and GPUs: 256. With --wait, waiters: 1000.")
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True)
@click.option("--script", type=click.Choice(["ours", "flink", "both"]), default="both", show_default=True)
@click.option("--flink-home", "home", type=click.Path(exists=True, path_type=Path), help="A folder with Flink in it.")
@click.option("--wait", "waits", is_flag=True, help="Queue for 8 devices.")
@click.option("--hold", type=click.FloatRange(0), default=0.3, show_default=True, help="With --wait: seconds of use.")
def main(size: int | None, runs: int, script: str, home: Path | None, *, waits: bool, hold: float) -> None:
    owners.adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and leave nobody behind
    if waits:
        click.echo(f"{contenders.machine()}, {_DEVICES} devices, each used for {hold:g} s at a time\n")
        sys.exit(not wait(size or 1000, hold))
    compare(size or 256, runs, script, home)


def compare(size: int, runs: int, script: str, home: Path | None) -> None:
    """Let as many as there are GPUs ask ours and Flink's script."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scripts = contenders.scripts(folder, script, home)
        standin = contenders.make_standin(folder)
        click.echo(f"{contenders.machine()}, nvidia-smi played by a stand-in in {standin}\n")
        click.echo(
            f"{'script':<9}{'owners':>7}{'granted':>9}{'different':>11}{'failed':>8}{'in 10 s':>9}{'seconds':>9}"
        )
        environment = contenders.environment(folder, size, 0)
        for number in range(runs):
            for each in scripts:
                results.append(run(each.afresh(number), environment, size))
                report(results[-1], size)
    _report_ratio(results)
    sys.exit(any(result.different != size for result in results if result.script == "ours"))


def _report_ratio(results: Sequence[Result]) -> None:
    ours, flinks = (
        statistics.median([result.seconds for result in results if result.script == name] or [math.nan])
        for name in ("ours", "Flink's")
    )
    if not math.isnan(ours / flinks):
        click.echo(f"\nseconds until the last is answered, ours to Flink's: {ours / flinks:.2f} (of medians)")


if __name__ == "__main__":
    main()
