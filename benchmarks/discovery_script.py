"""Our discovery script and Flink's own, side by side.

Both divide the GPUs of the same stand-in for nvidia-smi, in turn, each with a coordination file of its own that is put
back before each run. Flink's comes from a copy of Flink that is installed on this machine, or is installed for this.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from filelock import FileLock

from externalresource.coordination import Coordination, Owner, identify

FLINK = "2.3.0"
ENGINES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "externalresource" / "engines"
PLUGIN = Path("plugins", "external-resource-gpu", "nvidia-gpu-discovery.sh")
OURS = Path(sys.executable).with_name("nvidia-gpu-discovery")

# Answers --query-gpu=FIELDS as --format=csv,noheader,nounits does, for $STANDIN_GPUS devices, after $STANDIN_MS.
NVIDIA_SMI_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void cell(const char *field, int index) {
    if (!strcmp(field, "index")) printf("%d", index);
    else if (!strcmp(field, "uuid")) printf("GPU-00000000-0000-4000-8000-%012d", index);
    else if (!strcmp(field, "pci.bus_id")) printf("00000000:%02X:00.0", index + 1);
    else if (!strcmp(field, "compute_mode")) printf("Default");
    else if (!strcmp(field, "mig.mode.current")) printf("Disabled");
    else if (!strcmp(field, "name")) printf("Stand-in");
    else printf("81559");
}

int main(int count, char **words) {
    usleep(1000 * atoi(getenv("STANDIN_MS")));
    for (int index = 0; index < atoi(getenv("STANDIN_GPUS")); index++) {
        char fields[1024] = "";
        for (int word = 1; word < count; word++)
            if (!strncmp(words[word], "--query-gpu=", 12)) strncpy(fields, words[word] + 12, sizeof fields - 1);
        const char *separator = "";
        for (char *field = strtok(fields, ","); field; field = strtok(NULL, ",")) {
            printf("%s", separator);
            cell(field, index);
            separator = ", ";
        }
        printf("\n");
    }
    return 0;
}
"""

NVIDIA_SMI_SH = r"""#!/bin/sh
sleep "$(printf '0.%03d' "$STANDIN_MS")"
for word; do case $word in --query-gpu=*) fields=${word#*=} ;; esac; done
IFS=,
index=0
while [ "$index" -lt "$STANDIN_GPUS" ]; do
    line=
    for field in $fields; do
        case $field in
            index) cell=$index ;;
            uuid) cell=$(printf 'GPU-00000000-0000-4000-8000-%012d' "$index") ;;
            pci.bus_id) cell=$(printf '00000000:%02X:00.0' $((index + 1))) ;;
            compute_mode) cell=Default ;;
            mig.mode.current) cell=Disabled ;;
            name) cell=Stand-in ;;
            *) cell=81559 ;;
        esac
        line="$line${line:+, }$cell"
    done
    echo "$line"
    index=$((index + 1))
done
"""


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
    50: {Case(8, 7, 0, 1): 0.9, Case(8, 0, 8, 8): 0.5, Case(64, 0, 64, 64): 0.16},
    2: {Case(8, 7, 0, 1): 2.1, Case(8, 0, 8, 8): 0.42, Case(64, 0, 64, 64): 0.12},
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
class Script:
    name: str
    command: tuple[str, ...]
    coordination_file: Path
    #: Returns the coordination file in which each owner holds one device, from 0 on.
    ledger: Callable[[Sequence[Owner]], bytes]

    def words(self, amount: int) -> list[str]:
        path, *options = self.command
        file = str(self.coordination_file)
        return [path, str(amount), "--enable-coordination-mode", "--coordination-file", file, *options]


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
    ours: Script
    flinks: Script
    living: Sequence[Owner]
    dead: Sequence[Owner]
    environment: Mapping[str, str]

    def compare(self, case: Case, standin: int, runs: int) -> Result:
        """Run both in turn."""
        owners = self.living[: case.living] or self.dead[: case.dead]
        ledgers = {script.name: script.ledger(owners) for script in (self.ours, self.flinks)}
        environment = self.standin(case.gpus, standin)
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

    def standin(self, gpus: int, milliseconds: int) -> dict[str, str]:
        return {**self.environment, "STANDIN_GPUS": str(gpus), "STANDIN_MS": str(milliseconds)}


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


def our_ledger(folder: Path) -> Callable[[Sequence[Owner]], bytes]:
    def ledger(owners: Sequence[Owner]) -> bytes:
        file = folder / "prepared"
        file.unlink(missing_ok=True)
        coordination = Coordination(str(file), "gpu", gone=lambda owner, here: False)  # noqa: ARG005
        for index, owner in enumerate(owners):
            coordination.claim([Device(str(index))], 1, owner)
        return file.read_bytes()

    return ledger


def flinks_ledger(owners: Sequence[Owner]) -> bytes:
    return "".join(f"{index} {owner.pid}\n" for index, owner in enumerate(owners)).encode()


@contextmanager
def processes(count: int) -> Iterator[list[Owner]]:
    """So many processes, which have ended afterwards."""
    started = [subprocess.Popen(["sleep", "infinity"]) for _ in range(count)]
    try:
        yield [identify(process.pid) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def make_standin(folder: Path) -> str:
    """Put an nvidia-smi into the folder, and return what it is made of."""
    program = folder / "nvidia-smi"
    if compiler := shutil.which("gcc"):
        subprocess.run(
            [compiler, "-O2", "-w", "-x", "c", "-o", program, "-"], input=NVIDIA_SMI_C, text=True, check=True
        )
        return "C"
    program.write_text(NVIDIA_SMI_SH)
    program.chmod(0o755)
    return "shell"


def flink_home() -> Path:
    """Return where Flink is, of those that are there the newest; it is installed if there is none."""
    found = sorted(ENGINES.glob(f"flink-*/lib/python*/site-packages/pyflink/{PLUGIN}"))
    return found[-1].parents[2] if found else _install(ENGINES / f"flink-{FLINK}")


def _install(folder: Path) -> Path:
    click.echo(f"Installing Flink {FLINK} to {folder} ...", err=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # the tests against a real Flink use the same folder, lock and sign of completion
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"apache-flink=={FLINK}"], check=True)
        (folder / "complete").touch()
    return next(folder.glob("lib/python*/site-packages/pyflink"))


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
    environment = bench.standin(8, standin)
    floors = {
        "python -I -c pass": [sys.executable, "-I", "-c", "pass"],
        'python -I -c "import filelock"': [sys.executable, "-I", "-c", "import filelock"],
        "the stand-in alone": ["nvidia-smi", "--query-gpu=index"],
    }
    for name, command in floors.items():
        path = shutil.which(command[0], path=environment["PATH"])
        click.echo(f"      {name:<32}{median_ms([path or command[0], *command[1:]], environment, runs):>8.1f}")


def report_imports(bench: Bench, case: Case, standin: int) -> None:
    """Show where the time of a script goes that is slower than it should be."""
    bench.ours.coordination_file.write_bytes(bench.ours.ledger(bench.dead[: case.gpus]))
    words = [sys.executable, "-X", "importtime", *bench.ours.words(case.amount)]
    environment = bench.standin(case.gpus, standin)
    said = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stderr
    rows = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", said, re.MULTILINE)
    modules = sorted(((int(own), name) for own, name in rows), reverse=True)
    click.echo(
        f"\nOur script's imports: {sum(own for own, _ in modules) / 1000:.1f} ms in {len(modules)} modules; most:"
    )
    for own, name in modules[:10]:
        click.echo(f"{own / 1000:>8.1f} ms  {name}")


def report_machine(flink: Path, standin: str) -> None:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("externalresource", "filelock"))
    libraries = sorted(flink.glob("lib/flink-dist-*.jar"))
    version = libraries[0].stem.removeprefix("flink-dist-") if libraries else "unknown"
    click.echo(
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n"
        f"Python {platform.python_version()}, Linux {platform.release()}, {versions}, Flink {version}, "
        f"nvidia-smi played by a stand-in in {standin}\n"
        "Times in ms: medians, and the median of the ratios of paired runs."
    )


@click.command(help=__doc__)
@click.option("--runs", type=click.IntRange(1), default=15, show_default=True, help="Pairs of runs per row.")
@click.option("--gpus", type=click.IntRange(2, 255), multiple=True, default=(8, 16, 64), show_default=True)
@click.option("--quick", is_flag=True, help="2 runs, 8 GPUs.")
@click.option("--flink-home", "home", type=click.Path(exists=True, path_type=Path), help="A folder with Flink in it.")
def main(runs: int, gpus: Sequence[int], home: Path | None, *, quick: bool) -> None:
    if quick:
        runs, gpus = 2, (8,)
    flink = home or flink_home()
    if not (flink / PLUGIN).is_file():
        raise click.BadParameter(f"there is no {flink / PLUGIN}", param_hint="--flink-home")
    with tempfile.TemporaryDirectory() as name, processes(max(gpus) - 1) as living:
        folder = Path(name)
        report_machine(flink, make_standin(folder))
        with processes(max(gpus)) as dead:
            pass
        own = {key: value for key, value in os.environ.items() if not key.startswith(("EXTERNALRESOURCE_", "PYTHON"))}
        bench = Bench(
            ours=Script("ours", (str(OURS), "--backend", "nvidia-smi"), folder / "ours", our_ledger(folder)),
            flinks=Script("Flink's", (str(flink / PLUGIN),), folder / "flinks", flinks_ledger),
            living=living,
            dead=dead,
            environment=own | {"PATH": f"{folder}:{own['PATH']}"},
        )
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
