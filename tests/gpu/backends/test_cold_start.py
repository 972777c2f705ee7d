"""What an answer imports, as each start of the discovery script and of `externalresource run` pays for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import externalresource
import externalresource_gpu

# What takes a millisecond or more; a job that asks for one GPU takes some twenty.
COSTLY = {
    *("contextlib", "dataclasses", "filelock", "importlib.metadata", "inspect", "logging", "pathlib", "pluggy"),
    *("secrets", "subprocess", "typing", "urllib", "yaml"),
}
ROW = "Disabled, 0, GPU-5100, 00000000:10:00.0, 40960, 0, Default, 0, 30, NVIDIA A100-SXM4-40GB"


@pytest.mark.parametrize("ask", ["'nvidia-smi'", "'nvidia-smi', topology=True, processes=True", "'auto', '8'"])
def test_devices_are_listed_masked_and_chosen_without_an_import_that_costs(ask: str, tmp_path: Path) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text(f"#!/bin/sh\ncase $1 in *=gpu_rec*) echo 'None, {ROW}';; *=mig*) echo '{ROW}';; esac\n")
    nvidia_smi.chmod(0o755)
    code = f"""
import sys
from externalresource_gpu import backends
from externalresource_gpu.host import Host
from externalresource_gpu.script.options import Options
backend = backends.create({ask})
gpus = backend.devices(float("inf"))
options = Options(["1", "--min-memory=1", "--policy=connected", "--foreign-use=exclude"], {{}})
host = Host(options, backend.name, gpus, backend.links(float("inf")))
host.choose(host.candidates(), [], 1)
print(*sys.modules)
"""
    packages = externalresource, externalresource_gpu
    source = os.pathsep.join(os.path.dirname(package.__path__[0]) for package in packages)
    answer = subprocess.run(
        [sys.executable, "-SsPc", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": source, "PATH": f"{tmp_path}:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "0,1"},
    )
    assert COSTLY & {*answer.stdout.split()} == set()
