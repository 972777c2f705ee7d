from pathlib import Path

import pytest

from tests.support.amd_tools import amd_smi, listed, static


@pytest.fixture(autouse=True)
def _no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    for mask in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(mask, raising=False)


@pytest.fixture
def four(tmp_path: Path) -> str:
    return amd_smi(tmp_path, [listed(gpu) for gpu in range(4)], [static(gpu) for gpu in range(4)])
