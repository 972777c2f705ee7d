"""The fixture for tests that use a GPU, in real runs of pytest, with and without pytest-xdist."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from externalresource.coordination import ledger
from tests.test_package import PACKAGES

# Each test waits until all workers are there: one that has ended would have given its GPU back.
SUITE = """
import os, time
from pathlib import Path

def come():
    Path(os.environ["FOLDER"], f"came-{os.getpid()}").touch()

def meet():
    come()
    end = time.monotonic() + 60
    while len(list(Path(os.environ["FOLDER"]).glob("came-*"))) < int(os.environ["WORKERS"]):
        assert time.monotonic() < end
        time.sleep(0.01)

def test_has_a_gpu(worker_gpu):
    uuid = worker_gpu.get_property("uuid")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == uuid
    Path(os.environ["FOLDER"], f"gpu-{uuid}").touch()
    meet()

def test_has_it_still(worker_gpu):
    assert os.environ["CUDA_VISIBLE_DEVICES"] == worker_gpu.get_property("uuid")
"""
EACH = ("--dist=each",)  # all tests on every worker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a suite that uses the fixture, and one that does not."""
    (tmp_path / "test_suite.py").write_text(SUITE, encoding="utf-8")
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n", encoding="utf-8")
    return tmp_path


def run(folder: Path, *words: str, gpus: int, workers: int = 1, wait: int = 0) -> str:
    """Return what pytest says; of the suites at most `workers` wait for each other."""
    ours = ("COVERAGE_", "CUDA_", "EXTERNALRESOURCE_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "EXTERNALRESOURCE_GPU_SIMULATE": str(gpus),
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(folder / "claims"),
        "EXTERNALRESOURCE_GPU_WAIT": str(wait),
        "FOLDER": str(folder),
        "WORKERS": str(workers),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout + done.stderr


def gpus(folder: Path) -> int:
    return len(list(folder.glob("gpu-*")))


def test_each_worker_has_a_gpu_of_its_own_and_gives_it_back_at_its_end(folder: Path) -> None:
    assert "6 passed" in run(folder, "-n3", *EACH, "test_suite.py", gpus=3, workers=3)
    assert gpus(folder) == 3
    assert ledger.read(str(folder / "claims")) == []


def test_worker_without_a_gpu_says_who_has_them(folder: Path) -> None:
    (folder / "conftest.py").write_text("import test_suite\ndef pytest_exception_interact():\n    test_suite.come()\n")
    said = run(folder, "-n2", *EACH, "-k", "test_has_a_gpu", "test_suite.py", gpus=1, workers=2)
    assert "1 passed, 1 error" in said
    assert re.search(r"^no GPU for this worker: 1 wanted, 0 of 1 free; held by pid \d+ \(", said, re.MULTILINE)
    assert "Traceback" not in said


def test_worker_that_waits_gets_the_gpu_of_one_that_has_ended(folder: Path) -> None:
    assert "4 passed" in run(folder, "-n2", *EACH, "test_suite.py", gpus=1, wait=60)
    assert gpus(folder) == 1


@pytest.mark.parametrize("words", [(), ("-p", "no:xdist")], ids=["not distributed", "no xdist"])
def test_pytest_without_workers_has_one_gpu(folder: Path, words: tuple[str, ...]) -> None:
    assert "2 passed" in run(folder, *words, "test_suite.py", gpus=3)
    assert gpus(folder) == 1


def test_environment_is_as_before_at_the_end(folder: Path) -> None:
    (folder / "conftest.py").write_text(
        "import os\ndef pytest_unconfigure():\n    print('left:', os.environ.get('CUDA_VISIBLE_DEVICES'))\n",
        encoding="utf-8",
    )
    assert "left: None" in run(folder, "test_suite.py", gpus=1)


def test_nothing_is_claimed_unless_the_fixture_is_used(folder: Path) -> None:
    assert "1 passed" in run(folder, "-n1", "test_other.py", gpus=0)
    assert not (folder / "claims").exists()


def test_plugin_imports_nothing_before_it_is_used() -> None:
    code = (
        "import pytest, sys; before = set(sys.modules); import externalresource.testing.pytest_plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [
        "externalresource",
        "externalresource.faces",
        "externalresource.testing",
        "externalresource.testing.pytest_plugin",
    ]


def test_plugin_has_an_entry_point_of_its_own() -> None:
    points = importlib.metadata.entry_points(group="pytest11", name="externalresource")
    assert {point.value for point in points} == {"externalresource.testing.pytest_plugin"}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_may_be_imported_before_pytest_starts(package: str) -> None:
    assert "PYTEST_DONT_REWRITE" in (importlib.import_module(package).__doc__ or "")
