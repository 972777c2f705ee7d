"""The two commands of a fresh clone, as far as they can be tried without a network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
TOOLS = ("bash", "dirname", "find", "sort", "xargs", "sha256sum", "cat", "flock", "readlink", "sh")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a folder with our scripts, and in bin/ the few tools that every Debian has, without any Python."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    for folder in ("bin", "externalresource", "plugins"):
        (tmp_path / folder).mkdir()
    for file in ("pyproject.toml", "README.md"):
        (tmp_path / file).touch()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def start(clone: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(clone / "bin"), "HOME": str(clone)}
    command = [str(clone / "scripts" / script), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def put(clone: Path, program: str, text: str) -> None:
    path = clone / "bin" / program
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("script", ["demo", "test"])
def test_without_python_one_line_says_what_to_install(clone: Path, script: str) -> None:
    done = start(clone, script)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"scripts/{script}: Python 3.11 or newer is missing: sudo apt-get install python3 python3-venv"
    ]


@pytest.mark.parametrize("script", ["demo", "test"])
def test_without_venv_one_line_says_what_to_install(clone: Path, script: str) -> None:
    put(clone, "python3", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    done = start(clone, script)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"scripts/{script}: python3-venv is missing: sudo apt-get install python3-venv"]


def test_an_old_python_is_passed_over_for_a_newer_one(clone: Path) -> None:
    put(clone, "python3", "exit 1")
    put(clone, "python3.12", 'case "$2" in *ensurepip*) exit 1 ;; esac')
    assert "python3-venv is missing" in start(clone, "test").stderr


def test_for_flink_a_python_that_is_too_new_is_passed_over(clone: Path) -> None:
    number = 'case "$2" in *version_info*) exec python-is "$2" ;; *ensurepip*) exit 1 ;; esac'
    put(clone, "python3", number)
    put(clone, "python-is", 'case "$1" in *"<= 12)"*) exit 1 ;; esac')  # as Python 3.13 says
    assert "python3-venv is missing" in start(clone, "demo").stderr
    assert start(clone, "demo", "--flink").stderr.splitlines() == [
        "scripts/demo: Python 3.11 or 3.12 is missing: sudo apt-get install python3.12 python3.12-venv"
    ]


@pytest.mark.parametrize(
    ("folder", "extras", "words"),
    [(".venv", "demo", ["--gpus", "4"]), (".venv-flink", "demo,flink", ["--gpus", "4", "--flink"])],
)
def test_what_is_set_up_is_not_set_up_again(folder: str, extras: str, words: list[str], clone: Path) -> None:
    (clone / folder / "bin").mkdir(parents=True)
    put(clone, f"../{folder}/bin/externalresource", 'echo "started with $*"')
    fingerprint = subprocess.run(
        ["bash", "-c", 'die() { :; }; eval "$(sed -n "/^fingerprint/,/^}/p" scripts/environment.sh)"; fingerprint'],
        cwd=clone, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (clone / folder / f"ready-{extras}").write_text(fingerprint)
    done = start(clone, "demo", *words)
    assert (done.stdout, done.stderr) == (f"started with demo {' '.join(words)}\n", "")


def test_the_checkouts_discovery_script_leaves_its_parent_in_place(clone: Path) -> None:
    (clone / ".venv/bin").mkdir(parents=True)
    put(clone, "../.venv/bin/nvidia-gpu-discovery", "echo $PPID")
    (clone / "link").symlink_to(clone / "scripts" / "nvidia-gpu-discovery")
    assert start(clone, "../link").stdout == f"{os.getpid()}\n"
