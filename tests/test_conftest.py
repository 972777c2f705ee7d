"""What tests/conftest.py promises, in runs of pytest that have it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

IGNORING = ("sh", "-c", "trap '' HUP INT QUIT TERM; exec \"$@\"", "sh")


def run(folder: Path, test: str, *before: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Return what pytest says of one test file that stands beside a copy of our conftest.py."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_one.py").write_text(test, encoding="utf-8")
    ours = ("COVERAGE_", "EXTERNALRESOURCE_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
    words = [*before, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "1", f"--basetemp={folder}/base"]
    return subprocess.run(words, cwd=folder, env=environment, check=False, capture_output=True, text=True)


def test_signals_that_were_ignored_at_the_start_end_what_a_test_starts(tmp_path: Path) -> None:
    code = """
import subprocess

def test_signals():
    for number in 1, 2, 3, 15:
        assert subprocess.run(["sh", "-c", f"kill -{number} $$; sleep 60"]).returncode == -number
"""
    done = run(tmp_path, code, *IGNORING)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("variable", "outcome"), [("CI", "1 skipped"), ("EXTERNALRESOURCE_NO_SKIPS", "1 failed")], ids=str
)
def test_skip_is_a_failure_where_its_own_variable_says_so(variable: str, outcome: str, tmp_path: Path) -> None:
    code = "import pytest\n\ndef test_skip():\n    pytest.skip('there is no strace')\n"
    assert outcome in run(tmp_path, code, **{variable: "1"}).stdout
    assert "1 skipped" in run(tmp_path, code.replace("\ndef", "\n@pytest.mark.gpu\ndef"), **{variable: "1"}).stdout
