"""What tests/conftest.py promises, in runs of pytest that have it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from coverage import CoverageData

IGNORING = ("sh", "-c", "trap '' HUP INT QUIT TERM; exec \"$@\"", "sh")
PYTEST = str(Path(sysconfig.get_path("scripts"), "pytest"))
MEASURING = (sys.executable, "-m", "coverage", "run")


def run(folder: Path, test: str, *before: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Return what pytest says of one test file that stands beside a copy of our conftest.py."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_one.py").write_text(test, encoding="utf-8")
    ours = ("COVERAGE_", "EXTERNALRESOURCE_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
    words = [*before, PYTEST, "-p", "no:cacheprovider", f"--basetemp={folder}/base"]
    return subprocess.run(words, cwd=folder, env=environment, check=False, capture_output=True, text=True)


def test_signals_that_were_ignored_at_the_start_end_what_a_test_starts(tmp_path: Path) -> None:
    code = """
import subprocess

def test_signals():
    for number in 1, 2, 3, 15:
        assert subprocess.run(["sh", "-c", f"kill -{number} $$; sleep 60"]).returncode == -number
"""
    done = run(tmp_path, code, *IGNORING, PYTEST_ADDOPTS="-n 1")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("variable", "outcome"), [("CI", "2 skipped"), ("EXTERNALRESOURCE_NO_SKIPS", "1 failed, 1 skipped")], ids=str
)
def test_skip_is_a_failure_where_its_own_variable_says_so(variable: str, outcome: str, tmp_path: Path) -> None:
    code = """
import pytest

def test_skip():
    pytest.skip("there is no strace")

@pytest.mark.gpu
def test_skip_of_a_gpu():
    pytest.skip("there is no GPU")
"""
    assert f" {outcome} in " in run(tmp_path, code, **{variable: "1"}).stdout


def test_property_is_not_measured_and_what_follows_it_is(tmp_path: Path) -> None:
    (tmp_path / "measured.py").write_text("def one():\n    return 1\n\ndef other():\n    return 2\n")
    (tmp_path / ".coveragerc").write_text("[run]\ninclude = measured.py\n")
    code = """
import measured
from hypothesis import given, strategies as st

@given(st.booleans())
def test_property(_):
    assert measured.one() == 1

def test_that_follows():
    assert measured.other() == 2
"""
    done = run(tmp_path, code, *MEASURING, PYTHONPATH=str(tmp_path))
    assert " 2 passed in " in done.stdout
    lines = CoverageData(str(tmp_path / ".coverage"))
    lines.read()
    assert sorted(lines.lines(str(tmp_path / "measured.py")) or ()) == [1, 4, 5]
