"""What only a GPU can show: the backends agree with CUDA itself, and a process sees what it was granted."""

import json
import os
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from externalresource.records import replace
from externalresource_gpu import backends
from externalresource_gpu.device import Device

SCRIPTS = Path(sysconfig.get_path("scripts"))
# Each prints what the framework sees: one JSON list of a UUID and of MiB per device, in its order.
CUDA = """
import ctypes, json, uuid
cuda = ctypes.CDLL("libcuda.so.1")
found, count, memory, name = [], ctypes.c_int(0), ctypes.c_size_t(), (ctypes.c_ubyte * 16)()
if cuda.cuInit(0) == 0:
    assert cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
for device in range(count.value):
    assert cuda.cuDeviceGetUuid_v2(name, device) == 0
    assert cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device) == 0
    found.append([str(uuid.UUID(bytes=bytes(name))), memory.value >> 20])
print(json.dumps(found))
"""
TORCH = """
import json, torch
gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps([[str(gpu.uuid), gpu.total_memory >> 20] for gpu in gpus]))
"""
CUPY = """
import cupy, json, uuid
runtime = cupy.cuda.runtime
gpus = [runtime.getDeviceProperties(index) for index in range(runtime.getDeviceCount())]
print(json.dumps([[str(uuid.UUID(bytes=gpu["uuid"][:16])), gpu["totalGlobalMem"] >> 20] for gpu in gpus]))
"""
FRAMEWORKS = [
    pytest.param(CUDA, id="cuda"),
    pytest.param(TORCH, id="torch", marks=pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")),
    pytest.param(CUPY, id="cupy", marks=pytest.mark.skipif(find_spec("cupy") is None, reason="needs cupy")),
]


def has_gpu() -> bool:
    try:
        return subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")]


def devices(backend: str) -> list[Device]:
    return backends.create(backend, processes=True).devices(time.monotonic() + 60)


def lasting(device: Device) -> Device:
    """Return it without what changes from one look to the next."""
    instances = tuple(map(lasting, device.instances))
    return replace(device, memory_used=None, processes=None, instances=instances)


def usable() -> list[Device]:
    """Return what CUDA can show in one process, in PCI order."""
    return [device for device in devices("nvml") if device.unusable is None and device.mig_mode != "Enabled"]


def seen(command: list[str], **variables: str) -> Any:
    outside = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_")}
    done = subprocess.run(command, env=outside | variables, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


def test_nvml_and_nvidia_smi_agree() -> None:
    assert [*map(lasting, devices("nvml"))] == [*map(lasting, devices("nvidia-smi"))]


def test_nvml_and_nvidia_smi_agree_on_how_the_gpus_are_connected() -> None:
    links = []
    for name in ("nvml", "nvidia-smi"):
        backend = backends.create(name, topology=True)
        backend.devices(time.monotonic() + 60)
        links.append(backend.links(time.monotonic() + 60))
    assert links[0] == links[1]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_frameworks_see_the_same_gpus_in_the_same_order(framework: str) -> None:
    found = seen([sys.executable, "-c", framework], CUDA_DEVICE_ORDER="PCI_BUS_ID")
    expected = usable()
    assert [f"GPU-{uuid}" for uuid, _ in found] == [device.uuid for device in expected]
    for device, (_, memory) in zip(expected, found, strict=True):
        if device.memory_total is not None:  # CUDA leaves out what the driver reserves
            assert 0.9 * device.memory_total <= memory <= device.memory_total


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_process_started_by_run_sees_its_device_only(framework: str, tmp_path: Path) -> None:
    run = [str(SCRIPTS / "externalresource"), "run", "--coordination-file", str(tmp_path / "gpus"), "gpu=1", "--"]
    for wanted in usable():
        found = seen([*run, sys.executable, "-c", framework], CUDA_VISIBLE_DEVICES=wanted.uuid or "")
        assert [f"GPU-{uuid}" for uuid, _ in found] == [wanted.uuid]


def test_process_without_a_grant_sees_none(tmp_path: Path) -> None:
    script = [str(SCRIPTS / "nvidia-gpu-discovery"), "0", "--format=env"]
    lines = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    variables = dict(line.partition("=")[::2] for line in lines)
    assert seen([sys.executable, "-c", CUDA], **variables) == []


def test_no_gpu_is_in_two_hands(tmp_path: Path) -> None:
    words = ["--enable-coordination-mode", f"--coordination-file={tmp_path / 'gpus'}"]
    script = [str(SCRIPTS / "nvidia-gpu-discovery"), "1", *words]
    granted = [subprocess.run(script, check=False, capture_output=True, text=True) for _ in range(len(usable()) + 1)]
    assert sorted(int(done.stdout) for done in granted[:-1]) == [device.index for device in usable()]
    assert (granted[-1].returncode, granted[-1].stdout) == (1, "")
