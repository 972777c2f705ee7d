"""What docs/run.md shows is so: its files are used, and each of its blocks, run by a shell, prints what it shows."""

import inspect
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import externalresource
from externalresource.pools import _BREATH
from tests.support.user_manager import user_manager

PAGE = (Path(__file__).parents[2] / "docs" / "run.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
CONSOLE = [text for language, text in BLOCKS if language == "console"]
WAITS, LEFT = [text for language, text in BLOCKS if language == "text"]
FILES = {
    text.split("\n")[0].removeprefix("# "): text for language, text in BLOCKS if language in ("python", "make", "ini")
}
UNIT = "~/.config/systemd/user/train@.service"
SCRIPTS = sysconfig.get_path("scripts")


def commands(block: str) -> str:
    return "".join(f"{command}\n" for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE))


def answers(block: str) -> list[str]:
    return sorted(line for line in block.splitlines() if not line.startswith("$ "))


def seen(text: str) -> list[str]:
    """Return the lines without what differs from run to run, which is also their order."""
    text = re.sub(r"GPU-[0-9a-f-]+", "GPU-...", text)
    text = re.sub(r"in [\d.]+s", "in ...", text)
    return sorted(line for line in text.splitlines() if not line.startswith("waiting for gpu: "))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        if name != UNIT:
            (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    ours = ("COVERAGE_", "CUDA_", "EXTERNALRESOURCE_", "PYTEST_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "EXTERNALRESOURCE_GPU_SIMULATE": "2",
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(folder / "claims"),
    }


@pytest.fixture
def manager(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield an environment with a manager of systemd that has the unit of the page, with the paths of this machine."""
    with user_manager(folder / "manager") as found:
        for name in FILES:
            if name != UNIT:
                shutil.copy(folder / name, found["HOME"])
        unit = FILES[UNIT].replace("/usr/local/bin/externalresource", f"{SCRIPTS}/externalresource")
        variables = "".join(f"Environment={name}={environment[name]}\n" for name in environment if "RESOURCE_" in name)
        Path(found["HOME"], UNIT.removeprefix("~/")).write_text(unit + variables, encoding="utf-8")
        yield environment | found


def run(folder: Path, environment: dict[str, str], script: str) -> str:
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout


@pytest.mark.parametrize("block", [block for block in CONSOLE if "systemd" not in block and "systemctl" not in block])
def test_block_prints_what_the_page_shows(folder: Path, environment: dict[str, str], block: str) -> None:
    for tool in ("make", "parallel"):
        if f"$ {tool} " in block and shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    assert seen(run(folder, environment, commands(block))) == answers(block)


@pytest.mark.parametrize("block", [block for block in CONSOLE if "systemd" in block or "systemctl" in block])
def test_block_for_systemd_prints_what_the_page_shows(manager: dict[str, str], block: str) -> None:
    home = Path(manager["HOME"])
    assert seen(run(home, manager, commands(block))) == answers(block)


def test_service_with_a_tmp_of_its_own_sees_no_common_file(manager: dict[str, str], tmp_path: Path) -> None:
    claims = f"/var/tmp/{Path(manager['HOME']).name}"
    for private in ("no", "yes"):
        start = f"systemd-run --user --quiet --service-type=oneshot -p PrivateTmp={private} touch {claims}-{private}"
        run(tmp_path, manager, start)
    there = [Path(f"{claims}-{private}").exists() for private in ("no", "yes")]
    Path(f"{claims}-no").unlink(missing_ok=True)
    assert there == [True, False]


def test_waiting_is_told_as_the_page_shows(folder: Path, environment: dict[str, str]) -> None:
    script = """
    for _ in 1 2; do externalresource run gpu=1 -- python -c 'import time; time.sleep(600)' & done
    until [ "$(externalresource status | grep -c living)" = 2 ]; do :; done
    externalresource run gpu=1 --wait 0.2 -- true
    kill $(jobs -p)
    """
    said = run(folder, environment, script)
    shape = re.escape(WAITS.strip()).replace("4711", r"\d+").replace("4712", r"\d+")
    shape = re.sub(r"2026\\-11\\-20T18:23:5.Z", r"\\S+", shape)
    assert re.match(f"{shape}\n", said)


def test_what_a_command_left_is_told_as_the_page_shows(folder: Path, environment: dict[str, str]) -> None:
    script = """
    externalresource run gpu=1 -- sh -c 'sleep 600 >/dev/null 2>&1 & echo $! >left'
    externalresource status
    kill "$(cat left)"
    """
    said = re.sub(r"(sh \(pid \d+\) +)\S+", r"\1ann", run(folder, environment, script))
    assert words(said) == words(LEFT)


def words(table: str) -> list[list[str]]:
    """Return the words of each line, without what differs from run to run: pids and times."""
    return [re.sub(r"\d{4}-\S+Z|(?<=pid )\d+|(?<=^0) +\d+", " # ", line).split() for line in table.splitlines()]


def test_breath_of_a_pool_is_the_one_that_is_named() -> None:
    assert f"every {_BREATH:g} s;" in PAGE


def test_parameters_are_those_that_are_named() -> None:
    parameters = inspect.signature(externalresource.claim_for_worker).parameters.values()
    named = [f"{p.name}={p.default!r}" for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert f"`claim_for_worker({', '.join(named)})`".replace("'", '"') in PAGE


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    assert {language for language, _ in BLOCKS} == {"console", "ini", "make", "python", "text"}
    assert set(FILES) == {"train.py", "Makefile", UNIT, "pool.py", "test_model.py"}
