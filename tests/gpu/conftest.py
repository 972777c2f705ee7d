from pathlib import Path

import pytest

from tests.support.nvml_stub import Stub, compiled


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def stub(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    return Stub(monkeypatch, nvml_library, tmp_path / "gpus")
