"""pynvml as it may be found."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import create
from externalresource_gpu.backends.nvml import child
from externalresource_gpu.backends.nvml.backend import Nvml
from tests.support.backends import soon


def found_as(code: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "pynvml.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(directory))


def test_missing_pynvml_is_an_error_that_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_as("raise ImportError('No module named pynvml')", tmp_path, monkeypatch)
    with pytest.raises(DiscoveryError, match=r"\(No module named pynvml\): `pip install nvidia-ml-py`"):
        create("nvml").devices(soon())


def test_broken_pynvml_is_an_error_that_tells_how_it_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_as("nvmlInit = 1 / 0", tmp_path, monkeypatch)
    with pytest.raises(DiscoveryError, match=r"\(exit 1\): ZeroDivisionError: division by zero"):
        create("nvml").devices(soon())


def test_deprecated_pynvml_that_warns_still_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import warnings
warnings.warn("The pynvml package is deprecated.", FutureWarning)
class NVMLError(Exception):
    value = 9
def nvmlInit():
    raise NVMLError
"""
    found_as(code, tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with pytest.raises(DiscoveryError, match="Driver Not Loaded"):
        create("nvml").devices(soon())


@pytest.mark.parametrize("answer", ["", "no JSON", "[]", "{}"])
def test_child_that_is_no_child_of_ours_is_an_error(tmp_path: Path, answer: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    with pytest.raises(DiscoveryError, match="the child process gave no answer"):
        Nvml(str(python)).devices(soon())


class OldError(Exception):
    value = 15


class ForeignError(Exception):
    """Outside of pynvml's own base error."""


def test_old_pynvml_tells_what_it_knows() -> None:
    def mismatch(_: int) -> int:
        raise ForeignError

    old = SimpleNamespace(
        NVMLError=OldError,
        NVMLLibraryMismatchError=ForeignError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda _: b"GPU-1",
        nvmlDeviceGetName=lambda _: b"Tesla K80",
        nvmlDeviceGetComputeMode=mismatch,
    )
    answer = {"gpus": [{"index": 0, "failures": [], "uuid": "GPU-1", "name": "Tesla K80"}]}
    assert child.survey(old, ["processes"]) == answer
    del old.NVMLLibraryMismatchError, old.nvmlDeviceGetComputeMode
    assert child.survey(old, ["processes"]) == answer
