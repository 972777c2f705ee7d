"""What it costs to start with the framework: commands, imports, claims, jobs; each beside what does the same without.

Commands and imports: processor time, of all processes, to that of an empty Python. A claim with its release in a
process that has made one before: to what its files alone take, as in claim.py. Jobs: time on the clock, to that of the
same jobs without devices.
"""

import contextlib
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

import claim
import contenders
import externalresource
import owners

EMPTY = [sys.executable, "-I", "-c", "pass"]
COMMAND = str(Path(sys.executable).with_name("externalresource"))
_MOST = 12  # modules that are named where a goal is missed


@dataclass(frozen=True, slots=True)
class Start:
    """A program, and what its processor time may be to that of an empty Python."""

    name: str
    command: Sequence[str]
    goal: float


STARTS = [
    Start("run --simulate 8 gpu=1 -- true", [COMMAND, "run", "--simulate", "8", "gpu=1", "--", "true"], 6),
    Start("status", [COMMAND, "status"], 4.5),
    Start("discover --help", [COMMAND, "discover", "--help"], 4.5),
    Start("import of claim", [sys.executable, "-c", "import externalresource; externalresource.claim"], 4),
]
CLAIM_GOAL = 10.0
JOBS_GOAL = 1.2


@dataclass(frozen=True, slots=True)
class Pair:
    """Medians in milliseconds, and the median of the ratios of paired runs."""

    ours: float
    floor: float
    ratio: float


def compare(ours: Callable[[], float], floor: Callable[[], float], runs: int) -> Pair:
    """Take the two in turn, which return seconds; the first pair warms the caches."""
    pairs = [(ours(), floor()) for _ in range(runs + 1)][1:]
    return Pair(
        ours=statistics.median(mine for mine, _ in pairs) * 1e3,
        floor=statistics.median(least for _, least in pairs) * 1e3,
        ratio=statistics.median(mine / least for mine, least in pairs),
    )


def processor_time(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the seconds that a command and all its children take of the processors."""
    before = _used()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return _used() - before


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def clock_time(command: str, environment: Mapping[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(["sh", "-c", command], env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def compare_claims(folder: Path, runs: int) -> Pair:
    options = {"simulate": "8", "coordination-file": str(folder / "claims")}
    with owners.idle(7) as living:
        floor = claim.Pair(folder, 8, living)
        times = claim.compare(lambda: externalresource.claim("gpu", options=options).close(), floor.floor_of_both, runs)
    return Pair(times.ours / 1e3, times.floor / 1e3, times.ratio)


def compare_jobs(jobs: int, seconds: float, environment: Mapping[str, str], runs: int) -> Pair:
    def started(by: str) -> str:
        return f"seq {jobs} | xargs -P8 -I@ {by} sleep {seconds:g}"

    own = started(f"'{COMMAND}' run --simulate 8 gpu=1 --wait 60 --")
    return compare(lambda: clock_time(own, environment), lambda: clock_time(started("env"), environment), runs)


def report_watchers(folder: Path, environment: Mapping[str, str], seconds: float) -> None:
    """Show what the two watchers beside a command of `run` take: while it runs, and while it has left a daemon."""
    click.echo(f"\nThe two watchers beside a command of run, watched for {seconds:g} s:")
    for state, command in (("while the command runs", "sleep 600"), ("while a daemon is left", "sleep 600 & true")):
        words = [COMMAND, "run", "--simulate", "8", "gpu=1", "--", "sh", "-c", command]
        with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True) as run:
            time.sleep(2)
            watchers = _watchers(folder)
            began = sum(_ran(pid) for pid in watchers)
            time.sleep(seconds)
            hourly = (sum(_ran(pid) for pid in watchers) - began) * 3600 / seconds
            memory = sum(_unshared(pid) for pid in watchers) / 1024
            used = f"{began * 1e3:>6.1f} ms to begin, {hourly:.2f} s of processor time an hour"
            click.echo(f"  {state:<24}{used}, {memory:.1f} MiB that are not shared")
            os.killpg(run.pid, signal.SIGKILL)


def _watchers(folder: Path) -> list[int]:
    """Return the processes that hold a life lock in this folder."""
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            found += [pid] if any(path.startswith(f"{folder}/gpus.witness-") for path in held) else []
    return found


def _ran(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _unshared(pid: int) -> int:
    """Return the kibibytes of a process that it shares with no other."""
    return sum(
        map(int, re.findall(r"^Private_\w+: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    )


def report(name: str, pair: Pair, goal: float) -> None:
    judged = "met" if pair.ratio <= goal else "missed"
    click.echo(f"{name:<34}{pair.ours:>10.2f}{pair.floor:>10.2f}{pair.ratio:>8.2f}{goal:>6g}  {judged}")


def report_imports(start: Start, environment: Mapping[str, str]) -> None:
    """Show where the time of a start goes that is slower than it should be: in all its interpreters."""
    profiled = {**environment, "PYTHONPROFILEIMPORTTIME": "1"}
    said = subprocess.run(start.command, env=profiled, check=True, capture_output=True, text=True).stderr
    rows = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", said, re.MULTILINE)
    modules = sorted(((int(own), name) for own, name in rows), reverse=True)
    total = sum(own for own, _ in modules) / 1000
    click.echo(f"\n{start.name}: {total:.1f} ms in the imports of {len(modules)} modules; most, in ms:")
    click.echo("  " + ", ".join(f"{name} {own / 1000:.1f}" for own, name in modules[:_MOST]))


@click.command(help=__doc__)
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, help="Pairs of runs per row.")
@click.option("--jobs", type=click.IntRange(1), default=40, show_default=True, help="Jobs of a second, 8 at a time.")
@click.option("--quick", is_flag=True, help="2 runs, 8 jobs of a tenth of a second.")
def main(runs: int, jobs: int, *, quick: bool) -> None:
    if quick:
        runs, jobs = 2, 8
    click.echo(f"{contenders.machine()}\nMedians in ms, and the median of the ratios of {runs} paired runs.\n")
    click.echo(f"{'':<34}{'ours':>10}{'floor':>10}{'ratio':>8}{'goal':>6}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = contenders.environment(folder, 8, 0)
        environment["EXTERNALRESOURCE_GPU_COORDINATION_FILE"] = str(folder / "gpus")
        missed = []
        for start in STARTS:
            pair = compare(
                lambda start=start: processor_time(start.command, environment),  # type: ignore[misc]
                lambda: processor_time(EMPTY, environment),
                runs,
            )
            report(start.name, pair, start.goal)
            missed += [start] if pair.ratio > start.goal else []
        report("a claim and its release", compare_claims(folder, runs), CLAIM_GOAL)
        name_of_jobs = f"{jobs} jobs by xargs -P8"
        report(name_of_jobs, compare_jobs(jobs, 0.1 if quick else 1, environment, 1 + runs // 10), JOBS_GOAL)
        report_watchers(folder, environment, 2 if quick else 60)
        for start in missed:
            report_imports(start, environment)


if __name__ == "__main__":
    main()
