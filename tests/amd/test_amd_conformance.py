"""The driver of AMD's GPUs is one as all others are."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from externalresource.testing import DriverConformance
from tests.support.amd_tools import amd_smi, listed, static, tool


class TestAMD(DriverConformance):
    factory = "amd"
    wrong_options: ClassVar[Mapping[str, str]] = MappingProxyType({"command": "", "ignore-mask": "perhaps"})

    @pytest.fixture(autouse=True)
    def _no_masks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for mask in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(mask, raising=False)

    def machine(self, folder: Path, amount: int) -> Mapping[str, str]:
        return self._gpus(folder, [static(gpu) for gpu in range(amount)])

    def unusable(self, folder: Path) -> Mapping[str, str]:
        return self._gpus(folder, [static(0), static(1, ras={"bad_page_threshold_exceeded": "True"})])

    def failing(self, folder: Path) -> Mapping[str, str]:
        return {"command": tool(folder, "amd-smi", {}, then="exit 1")}

    def slow(self, folder: Path) -> Mapping[str, str]:
        return {"command": tool(folder, "amd-smi", {}, then="exec sleep 600")}

    def _gpus(self, folder: Path, described: list[Any]) -> Mapping[str, str]:
        return {"command": amd_smi(folder, [listed(gpu) for gpu in range(len(described))], described)}
