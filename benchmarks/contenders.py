"""The two discovery scripts that are compared, and the nvidia-smi that both ask.

Flink's comes from a copy of Flink that is installed on this machine, or is installed for this.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click
from filelock import FileLock

FLINK = "2.3.0"
ENGINES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "externalresource" / "engines"
PLUGIN = Path("plugins", "external-resource-gpu", "nvidia-gpu-discovery.sh")
OURS = Path(sys.executable).with_name("nvidia-gpu-discovery")
_FOREIGN = ("EXTERNALRESOURCE_", "PYTHON", "COVERAGE_")  # variables that would change what is measured

# Answers --query-gpu=FIELDS as --format=csv,noheader,nounits does, for $STANDIN_GPUS devices, after $STANDIN_MS.
NVIDIA_SMI_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void cell(const char *field, int index) {
    if (!strcmp(field, "index")) printf("%d", index);
    else if (!strcmp(field, "uuid")) printf("GPU-00000000-0000-4000-8000-%012d", index);
    else if (!strcmp(field, "pci.bus_id")) printf("%08X:%02X:00.0", (index + 1) / 256, (index + 1) % 256);
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
            pci.bus_id) cell=$(printf '%08X:%02X:00.0' $(((index + 1) / 256)) $(((index + 1) % 256))) ;;
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
class Script:
    name: str
    command: tuple[str, ...]
    coordination_file: Path

    def words(self, amount: int) -> list[str]:
        path, *options = self.command
        file = str(self.coordination_file)
        return [path, str(amount), "--enable-coordination-mode", "--coordination-file", file, *options]

    def afresh(self, number: int) -> "Script":
        """Return the same with a coordination file that is not there yet."""
        return replace(self, coordination_file=self.coordination_file.with_name(f"{self.name}-{number}"))


def ours(folder: Path, *options: str) -> Script:
    return Script("ours", (str(OURS), "--backend", "nvidia-smi", *options), folder / "ours")


def flinks(folder: Path, home: Path) -> Script:
    if not (home / PLUGIN).is_file():
        raise click.UsageError(f"there is no {home / PLUGIN}")
    return Script("Flink's", (str(home / PLUGIN),), folder / "flinks")


def scripts(folder: Path, which: str, home: Path | None) -> list[Script]:
    """Return those that `which` (ours, flink or both) names, to be started in numbers: ours may wait for the lock."""
    chosen = [ours(folder, "--timeout", "120")] if which != "flink" else []
    return chosen if which == "ours" else [*chosen, flinks(folder, home or flink_home())]


def environment(folder: Path, gpus: int, milliseconds: int) -> dict[str, str]:
    """Return variables with which both scripts find the folder's nvidia-smi, which has so many GPUs."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    path = f"{folder}:{own.get('PATH', os.defpath)}"
    return own | {"PATH": path, "STANDIN_GPUS": str(gpus), "STANDIN_MS": str(milliseconds)}


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


def machine() -> str:
    """Return when, on what and with what this is measured."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("externalresource", "filelock"))
    return (
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n"
        f"Python {platform.python_version()}, Linux {platform.release()}, {versions}"
    )


def flink_version(home: Path) -> str:
    libraries = sorted(home.glob("lib/flink-dist-*.jar"))
    return libraries[0].stem.removeprefix("flink-dist-") if libraries else "unknown"
