import os
from pathlib import Path

import pytest

from tests.support.gpu_drivers import Scripts
from tests.support.nvml_stub import Stub, compiled


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def stub(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    return Stub(monkeypatch, nvml_library, tmp_path / "gpus")


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The coordination file, in an environment where nobody has set anything else."""
    for name in os.environ:
        if name.startswith(("EXTERNALRESOURCE_", "FLINK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_COORDINATION_FILE", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


@pytest.fixture
def script(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)
