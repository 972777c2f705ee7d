"""The GPU driver is a guest in the process that uses it, whatever process that is."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from externalresource_gpu.backends.nvml.backend import Nvml, interpreter
from tests.support.discovery_host import NVIDIA_SMI
from tests.support.gpu_drivers import FLINKS, Scripts, created, failure, foreign, retrieved
from tests.support.nvml_stub import Stub

pytestmark = pytest.mark.usefixtures("ledger")


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI.format(first=""))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return program


@pytest.fixture
def children_ignored() -> Iterator[None]:
    """The process lets the kernel collect its children: how they ended is not known to it."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


def state() -> object:
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    descriptors = sorted(os.listdir("/proc/self/fd"))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    children = {path.read_text() for path in Path("/proc/self/task").glob("*/children")}
    threads = threading.active_count()
    return dict(os.environ), os.getcwd(), handlers, blocked, descriptors, children, threads, sys.unraisablehook


def no_fork() -> int:
    raise AssertionError("a process of somebody must not be forked")


def test_process_stays_as_it_was(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "fork", no_fork)
    before = state()
    driver = created({"backend": "nvidia-smi", "enable-coordination-mode": "true"})
    assert retrieved(driver, 2) == ["0", "1"]
    failure(driver, 1)
    driver.devices()
    driver.close()
    nvidia_smi.write_text("#!/bin/sh\nexit 9\n")
    failure(driver, 1)
    assert state() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("children_ignored", "nvidia_smi")
@pytest.mark.parametrize("backend", ["nvidia-smi", "nvml", "auto"])
def test_answer_is_complete_though_its_status_is_lost(stub: Stub, backend: str) -> None:
    stub.behave()
    driver = created({"backend": backend, "enable-coordination-mode": "true"})
    assert retrieved(driver, 2) == ["0", "1"]
    driver.close()


@pytest.mark.usefixtures("children_ignored")
def test_script_of_somebody_is_judged_by_its_answer_where_its_status_is_lost(script: Scripts, ledger: Path) -> None:
    ledger.touch()
    driver = foreign(script(FLINKS), args=f"--enable-coordination-mode --coordination-file {ledger}")
    assert retrieved(driver, 2) == ["0", "1"]
    assert "printed 'Could not get enough GPU resources.'" in failure(driver, 3)
    assert "the exit status is lost" in failure(foreign(script("exit 3", "silent.sh")), 1)


@pytest.mark.parametrize("program", ["", "/usr/lib/jvm/bin/java"], ids=["none", "java"])
def test_nvml_is_asked_by_a_python_where_the_interpreter_is_embedded(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    python = os.path.realpath(sys.executable)
    monkeypatch.setattr(sys, "executable", program)
    assert os.path.realpath(interpreter()) == python
    stub.behave()
    assert retrieved(created({"backend": "nvml"}), 2) == ["0", "1"]


def test_error_says_that_no_python_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"executable": "", "exec_prefix": "/no", "_base_executable": ""}.items():
        monkeypatch.setattr(sys, name, value)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Nvml()._argv[0] == "python3"
    assert failure(created({"backend": "nvml"}), 1) == "NVML: 'python3' cannot be run: No such file or directory"
