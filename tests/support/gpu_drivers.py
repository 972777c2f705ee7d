"""GPU drivers in this process, as their factory makes them, and discovery scripts for them."""

import os
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from externalresource.api import ExternalResourceDriver, ExternalResourceInfo
from externalresource.errors import ConfigurationError, ExternalResourceError
from externalresource_gpu.driver import GPUDriverFactory

INSTALLED = Path(sysconfig.get_path("scripts")) / "nvidia-gpu-discovery"
COORDINATED = {"simulate": "4", "enable-coordination-mode": "true"}

# Flink's protocol, as its own script has it: what it does not know it ignores, `--name=value` among it.
FLINKS = """
amount=$1
shift
while [ $# -gt 0 ]; do
  case $1 in
    --enable-coordination-mode) coordinated=yes ;;
    --coordination-file) file=$2; shift ;;
  esac
  shift
done
granted=
for index in 0 1 2 3; do
  [ $amount -gt 0 ] || break
  if [ "$coordinated" ]; then
    grep -q "^$index " "$file" && continue
    echo $index $PPID >> "$file"
  fi
  granted=${granted:+$granted,}$index amount=$((amount - 1))
done
[ $amount -eq 0 ] || { echo "Could not get enough GPU resources."; exit 1; }
echo $granted
"""


class Scripts:
    """Writes somebody's discovery scripts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, text: str, name: str = "somebodys.sh", mode: int = 0o755, first: str = "#!/bin/sh\n") -> str:
        """Return the path of a script of that text."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{first}{text}\n")
        path.chmod(mode)
        return str(path)


def created(options: dict[str, str]) -> ExternalResourceDriver:
    """Return the driver of these options."""
    return GPUDriverFactory().create_external_resource_driver(options)


def foreign(path: str, **options: str) -> ExternalResourceDriver:
    """Return the driver of that script; `args` and `timeout` are those of discovery-script."""
    given = {f"discovery-script.{name}": value for name, value in options.items()}
    return created({"discovery-script.path": path} | given)


def values(infos: Iterable[ExternalResourceInfo], key: str = "index") -> list[str | None]:
    return sorted((info.get_property(key) for info in infos), key=str)


def retrieved(driver: ExternalResourceDriver, amount: int) -> list[str | None]:
    return values(driver.retrieve_resource_info(amount))


def claimed(ledger: Path) -> list[tuple[str, int]]:
    rows = [line.split(" ", 2) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    return [(row[0], int(row[1])) for row in rows]


def mine(*tokens: str) -> list[tuple[str, int]]:
    return [(token, os.getpid()) for token in tokens]


def failure(driver: ExternalResourceDriver, amount: int = 2) -> str:
    with pytest.raises(ExternalResourceError) as caught:
        driver.retrieve_resource_info(amount)
    return one_line(caught.value)


def refusal(options: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        created(options)
    return one_line(caught.value)


def one_line(error: Exception) -> str:
    message = str(error)
    assert "\n" not in message
    assert len(message) < 2500
    return message


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def eventually(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


def in_a_forked_child(call: Callable[[], object]) -> int:
    """Return the exit status of a fork of this process that has called it."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
