"""Owners that come, ask for a GPU, live for a moment and are killed: who is given what is still another's.

Each owner is a process of its own that has the script as its child. Some kill their script half way, as Flink does at
its timeout; some are killed themselves while they ask. When all are dead, one owner asks for all GPUs, one by one.
Ours and Flink's run in turn, each with a coordination file of its own, and share one stand-in for nvidia-smi.
"""

import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click

import contenders
import owners
from contenders import Script
from observer import Life, Outcome, doubles, unjust_refusals
from owners import Answer, Asker

SHAPES = (8, 6), (8, 16), (16, 16), (2, 4)  # GPUs, owners at a time
REFUSALS = {"ours": " wanted, ", "Flink's": "Could not get enough GPU resources."}
_PATIENCE = 300  # seconds until a script that says nothing is an error of this benchmark
_MIDWAY = 0.1  # seconds within which a script, or an owner that asks, is killed
_KILLED = 0.05, 0.1  # the share of owners that kill their script, and that up to which the owners themselves are killed
_HEAD = ("script", "grants", "double", "lost", "refused", "unjust", "failed", "p50 ms", "p99 ms", "grants/s", "right/s")


@dataclass(frozen=True, slots=True)
class Churn:
    """What one of so many owners at a time does, again and again."""

    script: Script
    environment: Mapping[str, str]
    gpus: int
    rounds: int
    #: Seconds that an owner lives at most, once it has a device.
    life: float
    seed: int
    #: Where to write down what each owner did and when, one line of JSON each.
    log: Path | None = None


@dataclass(frozen=True, slots=True)
class Result:
    script: str
    grants: int
    doubles: int
    lost: int
    refusals: int
    unjust: int
    #: Why scripts ended that neither answered nor refused.
    failures: Sequence[str]
    p50: float
    p99: float
    seconds: float

    @property
    def right_per_second(self) -> float:
        return (self.grants - self.doubles) / self.seconds

    @property
    def wrong(self) -> int:
        return self.doubles + self.lost + self.unjust + len(self.failures)


def run(churn: Churn, places: int) -> Result:
    """Let `places` owners at a time come and go, and judge what they were given."""
    fork = multiprocessing.get_context("fork")
    began = time.monotonic()
    with ProcessPoolExecutor(places, mp_context=fork) as pool:
        lives = [life for several in pool.map(partial(_lives, churn), range(places)) for life in several]
    seconds = time.monotonic() - began
    if churn.log is not None:
        churn.log.write_text(
            "".join(f"{json.dumps(asdict(life), default=lambda outcome: outcome.value)}\n" for life in lives)
        )
    calls = sorted(life.answered - life.asked for life in lives if life.outcome in (Outcome.GRANTED, Outcome.REFUSED))
    if not calls:
        raise click.ClickException(f"no script answered: {_reasons(lives)}")
    return Result(
        script=churn.script.name,
        grants=_count(lives, Outcome.GRANTED),
        doubles=len(doubles(lives)),
        lost=churn.gpus - len(_all_that_one_gets(churn)),
        refusals=_count(lives, Outcome.REFUSED),
        unjust=len(unjust_refusals(lives, churn.gpus)),
        failures=_reasons(lives),
        p50=statistics.median(calls) * 1000,
        p99=calls[len(calls) * 99 // 100] * 1000,
        seconds=seconds,
    )


def _lives(churn: Churn, place: int) -> list[Life]:
    owners.end_with_parent()
    owners.adopt_orphans()
    chance = random.Random(f"{churn.seed} {place}")
    return [_live(churn, chance) for _ in range(churn.rounds)]


def _live(churn: Churn, chance: random.Random) -> Life:
    kills, killed = _KILLED
    fate, moment = chance.random(), chance.random()
    patience = moment * _MIDWAY if fate < kills else None
    asked = time.monotonic()
    owner = Asker(churn.script.words(1), churn.environment, patience=patience)
    if kills <= fate < killed:
        _wait_until_it_asks(owner)
        time.sleep(moment * _MIDWAY)
        lived, died = owner.kill()
        life = Life(Outcome.KILLED, asked, died, lived, died)
    else:
        answer = owner.answer(_PATIENCE)
        outcome, device = _judge(churn, answer)
        if outcome is not Outcome.REFUSED:
            time.sleep(chance.random() * churn.life)
        lived, died = owner.kill()
        reason = answer.stderr or answer.stdout
        life = Life(outcome, answer.asked, answer.answered, lived, died, device, reason)
    owner.reap()
    return life


def _wait_until_it_asks(owner: Asker) -> None:
    # A script whose owner dies before it has looked who that is takes whoever adopts it for its owner: this process.
    end = time.monotonic() + _PATIENCE
    while not owner.has_asked() and not owner.has_answer() and time.monotonic() < end:
        time.sleep(0.001)


def _judge(churn: Churn, answer: Answer) -> tuple[Outcome, int | None]:
    token = answer.stdout.strip()
    if answer.status == 0 and token.isdecimal() and int(token) < churn.gpus:
        return Outcome.GRANTED, int(token)
    if answer.status < 0:
        return Outcome.KILLED, None
    said = answer.stdout + answer.stderr
    refused = answer.status == 1 and REFUSALS[churn.script.name] in said
    return Outcome.REFUSED if refused else Outcome.FAILED, None


def _all_that_one_gets(churn: Churn) -> set[str]:
    """Return the devices that this process gets, as nobody else lives."""
    words = churn.script.words(1)
    answers = [
        subprocess.run(words, env=churn.environment, check=False, capture_output=True, text=True)
        for _ in range(churn.gpus)
    ]
    return {answer.stdout.strip() for answer in answers if answer.returncode == 0}


def _count(lives: Iterable[Life], outcome: Outcome) -> int:
    return sum(life.outcome is outcome for life in lives)


def _reasons(lives: Iterable[Life]) -> list[str]:
    return [life.reason.strip() for life in lives if life.outcome is Outcome.FAILED]


def report(result: Result) -> None:
    row = (
        *(result.script, result.grants, result.doubles, result.lost, result.refusals, result.unjust),
        *(len(result.failures), f"{result.p50:.0f}", f"{result.p99:.0f}"),
        *(f"{result.grants / result.seconds:.1f}", f"{result.right_per_second:.1f}"),
    )
    _print_row(row)
    for reason in sorted(set(result.failures))[:3]:
        click.echo(f"    failed {result.failures.count(reason)} times: {reason[-600:]}")


def _print_row(cells: Sequence[object]) -> None:
    click.echo("".join(f"{cell!s:>9}" for cell in cells))


def report_ratio(results: Mapping[str, Sequence[Result]]) -> None:
    """Show what both gave rightly, run by run."""
    pairs = list(zip(results["ours"], results["Flink's"], strict=True))
    ratios = [ours.right_per_second / max(flinks.right_per_second, 1e-9) for ours, flinks in pairs]
    median = statistics.median(ratios)
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    met = "met" if median >= 1 else "missed"
    click.echo(f"right grants per second, ours to Flink's: {median:.2f} (median of {each}); goal at least 1: {met}")


def report_total(results: Sequence[Result]) -> None:
    for name in sorted({result.script for result in results}, reverse=True):
        own = [result for result in results if result.script == name]
        grants, double = (sum(getattr(result, what) for result in own) for what in ("grants", "doubles"))
        click.echo(
            f"{name}, all shapes: {grants} grants, {double} of them double ({double / max(grants, 1):.1%}), "
            f"{sum(result.lost for result in own)} GPUs lost, {sum(result.refusals for result in own)} refusals, "
            f"{sum(result.unjust for result in own)} of them while a GPU was free, "
            f"{sum(len(result.failures) for result in own)} failures"
        )


@click.command(help=__doc__)
@click.option("--script", type=click.Choice(["ours", "flink", "both"]), default="both", show_default=True)
@click.option("--gpus", type=click.IntRange(1, 1024), help="One shape instead of several; with --owners.")
@click.option("--owners", "places", type=click.IntRange(1, 512), help="Owners at a time.")
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True, help="Owners in a place, one by one.")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Runs of each script per shape.")
@click.option("--life", type=click.FloatRange(0), default=100, show_default=True, help="At most; in ms.")
@click.option("--log", type=click.Path(path_type=Path), help="Write down there what each owner of the last run did.")
@click.option("--flink-home", "home", type=click.Path(exists=True, path_type=Path), help="A folder with Flink in it.")
def main(  # noqa: PLR0913 - one for each option
    *,
    script: str,
    gpus: int | None,
    places: int | None,
    rounds: int,
    runs: int,
    life: float,
    log: Path | None,
    home: Path | None,
) -> None:
    if (gpus is None) != (places is None):
        raise click.UsageError("--gpus and --owners go together")
    shapes = SHAPES if gpus is None or places is None else ((gpus, places),)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scripts = contenders.scripts(folder, script, home)
        standin = contenders.make_standin(folder)
        click.echo(f"{contenders.machine()}, nvidia-smi played by a stand-in in {standin}")
        results: list[Result] = []
        for shape, (number, owning) in enumerate(shapes):
            environment = contenders.environment(folder, number, 0)
            churns = [Churn(each, environment, number, rounds, life / 1000, shape * runs, log) for each in scripts]
            results += _measure(churns, owning, runs)
    click.echo()
    report_total(results)
    sys.exit(any(result.wrong for result in results if result.script == "ours"))


def _measure(churns: Sequence[Churn], places: int, runs: int) -> list[Result]:
    click.echo(f"\n{churns[0].gpus} GPUs, {places} owners at a time, each lives up to {churns[0].life * 1000:g} ms")
    _print_row(_HEAD)
    results: dict[str, list[Result]] = {churn.script.name: [] for churn in churns}
    for number in range(runs):
        for churn in churns:
            seed = churn.seed + number
            result = run(replace(churn, script=churn.script.afresh(seed), seed=seed), places)
            report(result)
            results[churn.script.name].append(result)
    if len(results) > 1:
        report_ratio(results)
    return [result for several in results.values() for result in several]


if __name__ == "__main__":
    main()
