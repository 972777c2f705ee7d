"""A library that stands in for NVML beneath the real pynvml: nvml_stub.c, compiled."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from externalresource_gpu.backends.nvml.backend import Nvml
from externalresource_gpu.device import Device


def device(index: int, **differing: Any) -> Device:
    known: dict[str, Any] = {
        "uuid": f"GPU-00000000-0000-0000-0000-{index:012}",
        "name": "NVIDIA A100-SXM4-40GB",
        "memory_total": 40960,
        "memory_used": 301,  # of which NVML counts a single byte beyond 300, as nvidia-smi does
        "pci_bus_id": f"0000F00{index}:0A:00.0",
        "compute_mode": "Default",
        "mig_mode": "Disabled",
    }
    return Device(index, **(known | differing))


def compiled(directory: Path, *options: str) -> Path:
    """Return the directory, with the library in it; skip where there is no compiler."""
    if not (gcc := shutil.which("gcc")):
        pytest.skip("gcc is missing: NVML cannot be stood in for")
    flags = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1", *options]
    source = Path(__file__).with_suffix(".c")
    subprocess.run([gcc, *flags, "-o", directory / "libnvidia-ml.so.1", source], check=True)
    return directory


class Stub:
    """Makes backends that meet the real pynvml on a library that behaves as told; this process never loads it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, library: Path, bound: Path) -> None:
        self._monkeypatch, self._library = monkeypatch, library
        self.bound = bound

    def behave(self, *words: str, count: int = 2, library: Path | None = None, driver: str = "590.48.01") -> None:
        """Let NVML behave so for whoever is started from here on."""
        variables = {
            "LD_LIBRARY_PATH": str(library or self._library),
            "STUB_NVML": ",".join(words),
            "STUB_NVML_COUNT": str(count),
            "STUB_NVML_DRIVER": driver,
        }
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)

    def __call__(
        self, *words: str, count: int = 2, library: Path | None = None, driver: str = "590.48.01", **asked: Any
    ) -> Nvml:
        self.behave(*words, count=count, library=library, driver=driver)
        return Nvml(sys.executable, str(self.bound), **asked)
