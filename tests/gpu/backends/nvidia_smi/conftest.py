"""The stand-in for nvidia-smi."""

import sys
from pathlib import Path

import pytest

from externalresource_gpu.backends.nvidia_smi.backend import NvidiaSmi
from tests.support.nvidia_smi import StandIn


@pytest.fixture
def bound(tmp_path: Path) -> Path:
    """Where the driver would list the GPUs that it is bound to."""
    return tmp_path / "gpus"


@pytest.fixture
def stand_in(tmp_path: Path, bound: Path) -> StandIn:
    version = tmp_path / "version"
    version.write_text("595.71.05\n")

    def write(code: str) -> NvidiaSmi:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!{sys.executable} -SE\nimport os, sys, time\nargv = sys.argv[1:]\n{code}\n")
        program.chmod(0o755)
        return NvidiaSmi(str(program), str(version), str(bound))

    return write
