"""Virtual environments with a real engine in each: made once per machine, kept outside the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "externalresource" / "engines"


def marks(command: str = "java", package: str = "openjdk-17-jre-headless") -> list[pytest.MarkDecorator]:
    """For `pytestmark` of tests that start an engine: without Java they are skipped, in .ci/run they must run."""
    missing = shutil.which(command) is None and "EXTERNALRESOURCE_NO_SKIPS" not in os.environ
    return [
        pytest.mark.engines,
        pytest.mark.timeout(900),  # the first run on a machine installs the engine
        pytest.mark.skipif(missing, reason=f"needs {command} on PATH, for example {package}"),
    ]


def environment(package: str, version: str) -> Path:
    """The folder of a virtual environment with this package."""
    folder = CACHE / f"{package.removeprefix('apache-')}-{version}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        if not _marker(folder).exists():
            _make(folder, f"{package}=={version}")
    return folder


def lock(folder: Path) -> FileLock:
    """To be held while the environment is changed."""
    return FileLock(f"{folder}.lock")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The output of a command that must succeed; both streams are in the error if it does not."""
    done = subprocess.run(
        command,
        cwd=cwd,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    if done.returncode:
        raise CommandError(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout}")
    return done.stdout


class CommandError(Exception):
    pass


def _make(folder: Path, requirement: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        run(sys.executable, "-m", "venv", folder)
        run(folder / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", requirement)
    except CommandError as error:
        _unavailable(f"cannot make an environment with {requirement}: {error}")
    _marker(folder).touch()


def _marker(folder: Path) -> Path:
    # A virtual environment cannot be built aside and renamed (its scripts hold its path), and an interrupted pip leaves
    # one behind that looks whole.
    return folder / "complete"


def _unavailable(reason: str) -> NoReturn:
    if "EXTERNALRESOURCE_NO_SKIPS" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)
