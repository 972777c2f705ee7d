"""Our discovery script and Flink's own, side by side.

Both divide the GPUs of the same stand-in for nvidia-smi, in turn, each with a coordination file of its own that is put
back before each run. Flink's comes from a copy of Flink that is installed on this machine, or is installed for this.
"""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

import contenders
import owners
from contenders import Script
from externalresource.coordination import Coordination, Holder, Process

#: Returns the coordination file in which each owner holds one device, from 0 on.
Ledger = Callable[[Sequence[Process]], bytes]


@dataclass(frozen=True, slots=True)
class Case:
    """Who holds the GPUs, and how many are asked for."""

    gpus: int
    living: int
    dead: int
    amount: int

    @property
    def held(self) -> str:
        return f"{self.living} living" if self.living else f"{self.dead} dead"


def cases(gpus: int) -> list[Case]:
    return [Case(gpus, gpus - 1, 0, 1), Case(gpus, 0, gpus, 1), Case(gpus, 0, gpus, gpus)]


#: By the milliseconds that nvidia-smi takes: how long ours may take, as a share of what Flink's takes.
GOALS = {
    50: {Case(8, 7, 0, 1): 0.8, Case(8, 0, 8, 8): 0.5, Case(64, 0, 64, 64): 0.16},
    2: {Case(8, 7, 0, 1): 1.0, Case(8, 0, 8, 8): 0.42, Case(64, 0, 64, 64): 0.12},
}


@dataclass(frozen=True, slots=True)
class Device:
    """What a coordination file has to know of the stand-in's devices."""

    token: str
    parent_uuid: None = None
    parent_token: None = None

    @property
    def uuid(self) -> str:
        return f"GPU-00000000-0000-4000-8000-{int(self.token):012}"


@dataclass(frozen=True, slots=True)
class Timed:
    milliseconds: float
    granted: int
    said: str


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    ours: float
    flinks: float
    ratio: float
    flink_failed: bool
    goal: float | None

    @property
    def missed(self) -> bool:
        return self.goal is not None and self.ratio > self.goal


@dataclass(frozen=True, slots=True)
class Bench:
    folder: Path
    ours: Script
    flinks: Script
    ledgers: Mapping[str, Ledger]
    living: Sequence[Process]
    dead: Sequence[Process]

    def compare(self, case: Case, standin: int, runs: int) -> Result:
        """Run both in turn."""
        owners = self.living[: case.living] or self.dead[: case.dead]
        ledgers = {name: ledger(owners) for name, ledger in self.ledgers.items()}
        environment = contenders.environment(self.folder, case.gpus, standin)
        pairs = []
        for run in range(runs + 1):
            ours, flinks = (
                timed(script, ledgers[script.name], case.amount, environment) for script in (self.ours, self.flinks)
            )
            if ours.granted != case.amount:
                raise click.ClickException(f"our script granted {ours.granted} of {case.amount}: {ours.said}")
            if run:  # the first warms the caches
                pairs.append((ours, flinks))
        return Result(
            case=case,
            ours=statistics.median(ours.milliseconds for ours, _ in pairs),
            flinks=statistics.median(flinks.milliseconds for _, flinks in pairs),
            ratio=statistics.median(ours.milliseconds / flinks.milliseconds for ours, flinks in pairs),
            flink_failed=any(flinks.granted != case.amount for _, flinks in pairs),
            goal=GOALS[standin].get(case),
        )


def timed(script: Script, ledger: bytes, amount: int, environment: Mapping[str, str]) -> Timed:
    script.coordination_file.write_bytes(ledger)
    words = script.words(amount)
    began = time.perf_counter()
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    milliseconds = (time.perf_counter() - began) * 1000
    granted = len(done.stdout.split(",")) if done.returncode == 0 else 0
    return Timed(milliseconds, granted, done.stderr or done.stdout)


def median_ms(command: Sequence[str], environment: Mapping[str, str], runs: int) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def our_ledger(folder: Path) -> Ledger:
    def ledger(owners: Sequence[Process]) -> bytes:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            file = Path(name, "prepared")
            coordination = Coordination(str(file), "gpu", gone=lambda owner, here: False)  # noqa: ARG005
            for index, owner in enumerate(owners):
                coordination.claim([Device(str(index))], 1, Holder(owner))
            return file.read_bytes()

    return ledger


def flinks_ledger(owners: Sequence[Process]) -> bytes:
    return "".join(f"{index} {owner.pid}\n" for index, owner in enumerate(owners)).encode()


def report(results: Sequence[Result]) -> None:
    click.echo(f"{'GPUs':>4}  {'held by':<10}{'asked':>5}{'ours':>9}{'Flink':>9}{'ratio':>8}{'goal':>8}")
    for result in results:
        case = result.case
        goal = "" if result.goal is None else f"{result.goal:>8g}  {'missed' if result.missed else 'met'}"
        failed = "  (Flink's fails)" if result.flink_failed else ""
        click.echo(
            f"{case.gpus:>4}  {case.held:<10}{case.amount:>5}"
            f"{result.ours:>9.1f}{result.flinks:>9.1f}{result.ratio:>8.2f}{goal or ' ' * 8}{failed}"
        )


def report_floors(bench: Bench, standin: int, runs: int) -> None:
    environment = contenders.environment(bench.folder, 8, standin)
    floors = {
        "python -I -c pass": [sys.executable, "-I", "-c", "pass"],
        "the stand-in alone": ["nvidia-smi", "--query-gpu=index"],
    }
    for name, command in floors.items():
        path = shutil.which(command[0], path=environment["PATH"])
        click.echo(f"      {name:<32}{median_ms([path or command[0], *command[1:]], environment, runs):>8.1f}")


def report_imports(bench: Bench, case: Case, standin: int) -> None:
    """Show where the time of a script goes that is slower than it should be."""
    bench.ours.coordination_file.write_bytes(bench.ledgers[bench.ours.name](bench.dead[: case.gpus]))
    words = [sys.executable, "-X", "importtime", *bench.ours.words(case.amount)]
    environment = contenders.environment(bench.folder, case.gpus, standin)
    said = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stderr
    rows = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", said, re.MULTILINE)
    modules = sorted(((int(own), name) for own, name in rows), reverse=True)
    click.echo(
        f"\nOur script's imports: {sum(own for own, _ in modules) / 1000:.1f} ms in {len(modules)} modules; most:"
    )
    for own, name in modules[:10]:
        click.echo(f"{own / 1000:>8.1f} ms  {name}")


@click.command(help=__doc__)
@click.option("--runs", type=click.IntRange(1), default=15, show_default=True, help="Pairs of runs per row.")
@click.option("--gpus", type=click.IntRange(2, 1024), multiple=True, default=(8, 16, 64), show_default=True)
@click.option("--quick", is_flag=True, help="2 runs, 8 GPUs.")
@click.option("--flink-home", "home", type=click.Path(exists=True, path_type=Path), help="A folder with Flink in it.")
def main(runs: int, gpus: Sequence[int], home: Path | None, *, quick: bool) -> None:
    if quick:
        runs, gpus = 2, (8,)
    flink = home or contenders.flink_home()
    with tempfile.TemporaryDirectory() as name, owners.idle(max(gpus) - 1) as living:
        folder = Path(name)
        ours, flinks = contenders.ours(folder), contenders.flinks(folder, flink)
        click.echo(
            f"{contenders.machine()}, Flink {contenders.flink_version(flink)}, "
            f"nvidia-smi played by a stand-in in {contenders.make_standin(folder)}\n"
            "Times in ms: medians, and the median of the ratios of paired runs."
        )
        with owners.idle(max(gpus)) as dead:
            pass
        ledgers = {ours.name: our_ledger(folder), flinks.name: flinks_ledger}
        bench = Bench(folder, ours, flinks, ledgers, living, dead)
        for standin in GOALS:
            _measure(bench, standin, [case for number in gpus for case in cases(number)], runs)


def _measure(bench: Bench, standin: int, rows: Sequence[Case], runs: int) -> None:
    click.echo(f"\nnvidia-smi takes {standin} ms")
    results = [bench.compare(case, standin, runs) for case in rows]
    report(results)
    report_floors(bench, standin, runs)
    missed = [result.case for result in results if result.missed]
    if missed:
        report_imports(bench, missed[0], standin)


if __name__ == "__main__":
    main()
