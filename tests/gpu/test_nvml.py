import ctypes
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import create, nvml_child
from externalresource_gpu.backends.auto import Auto
from externalresource_gpu.backends.nvidia_smi import NvidiaSmi
from externalresource_gpu.backends.nvml import Nvml
from externalresource_gpu.device import Device

# As much of NVML as the real pynvml asks for here: STUB_NVML says how it behaves, STUB_NVML_COUNT how many GPUs it has.
LIBRARY = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char busId[32]; } Pci;
typedef struct { u64 total, free, used; } Memory;
typedef struct { u32 gpu, memory; } Utilization;
typedef struct { u32 id, scope; u64 time, latency; int type, result; u64 value; } Field;

static int is(const char *mode) { const char *now = getenv("STUB_NVML"); return now && !strcmp(now, mode); }
static u32 number(void *handle) { return (u32)(size_t)handle - 1; }
static int bad(void *handle, const char *mode) { return is(mode) && number(handle) == 1; }

int nvmlInitWithFlags(u32 flags) {
    if (is("chatty")) for (int i = 0; i < 20000; i++) {
        puts("a line of about fifty characters, as this one is");
        fputs("a line of about fifty characters, as this one is\n", stderr);
    }
    if (is("hang")) for (;;) sleep(600);
    if (is("crash")) raise(SIGSEGV);
    return is("permission") ? 4 : is("driver") ? 9 : is("mismatch") ? 18 : is("nogpu") ? 28 : is("unknown") ? 999 : 0;
}
int nvmlShutdown(void) { if (is("crash late")) raise(SIGSEGV); return 0; }
int nvmlDeviceGetCount_v2(u32 *count) { *count = atoi(getenv("STUB_NVML_COUNT")); return is("no count") ? 999 : 0; }
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **handle) {
    *handle = (void *)(size_t)(index + 1);
    return bad(*handle, "lost") ? 15 : bad(*handle, "forbidden") ? 4 : 0;
}
int nvmlDeviceGetUUID(void *h, char *uuid, u32 size) {
    snprintf(uuid, size, "GPU-00000000-0000-0000-0000-%012u", number(h));
    return bad(h, "no uuid") ? 999 : 0;
}
int nvmlDeviceGetName(void *h, char *name, u32 size) { snprintf(name, size, "NVIDIA A100-SXM4-40GB"); return 0; }
int nvmlDeviceGetPciInfo_v3(void *h, Pci *pci) {
    snprintf(pci->busId, 32, "0000F00%u:0A:00.0", number(h));
    snprintf(pci->legacy, 16, "F00%u:0A:00.0", number(h));
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *h, Memory *memory) {
    memory->total = 42949672960ULL; memory->free = memory->total; memory->used = 0;
    return is("unified") ? 3 : 0;
}
int nvmlDeviceGetComputeMode(void *h, int *mode) { *mode = is("prohibited") ? 2 : is("exclusive") ? 3 : 0; return 0; }
int nvmlDeviceGetUtilizationRates(void *h, Utilization *utilization) {
    utilization->gpu = utilization->memory = 0;
    return bad(h, "reset") ? 16 : is("mig") ? 3 : 0;
}
int nvmlDeviceGetFieldValues(void *h, int count, Field *field) {
    field->result = field->id != 230 || is("driver of 2023") ? 2 : 0;
    field->value = bad(h, "drain") ? 3 : bad(h, "recovery") || is("driver of 2023");
    return 0;
}
int nvmlDeviceGetTemperature(void *h, int sensor, u32 *degrees) { *degrees = 30; return bad(h, "cold") ? 16 : 0; }
#ifndef OLD
int nvmlDeviceGetMigMode(void *h, u32 *now, u32 *next) { *now = *next = is("mig"); return is("unified") ? 3 : 0; }
#endif
"""

Stub = Callable[..., Nvml]


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def compiled(directory: Path, *options: str) -> Path:
    if not (gcc := shutil.which("gcc")):
        pytest.skip("gcc is missing: NVML cannot be stood in for")
    source, library = directory / "nvml.c", directory / "libnvidia-ml.so.1"
    source.write_text(LIBRARY)
    flags = ["-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", *options]
    subprocess.run([gcc, *flags, "-o", str(library), str(source)], check=True)
    return directory


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def stub(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """The real pynvml on a library that behaves as told; this process never loads it."""

    def behave(mode: str = "ok", count: int = 2, directory: Path = library, python: str = sys.executable) -> Nvml:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(directory))
        monkeypatch.setenv("STUB_NVML", mode)
        monkeypatch.setenv("STUB_NVML_COUNT", str(count))
        return Nvml(python, str(tmp_path / "gpus"))

    return behave


def device(index: int, **differing: Any) -> Device:
    known: dict[str, Any] = {
        "uuid": f"GPU-00000000-0000-0000-0000-{index:012}",
        "name": "NVIDIA A100-SXM4-40GB",
        "memory_total": 40960,
        "pci_bus_id": f"0000F00{index}:0A:00.0",
        "compute_mode": "Default",
        "mig_mode": "Disabled",
    }
    return Device(index, **(known | differing))


def message(error: pytest.ExceptionInfo[DiscoveryError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# The real pynvml


def test_healthy_gpus_are_known_by_all_that_nvml_tells(stub: Stub) -> None:
    assert stub().devices(soon()) == [device(0), device(1)]


def test_both_backends_have_the_same_record_of_a_machine(stub: Stub, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    cells = "Disabled, {0}, GPU-00000000-0000-0000-0000-00000000000{0}, 0000F00{0}:0A:00.0, 40960, Default, 0, 30"
    rows = "\n".join(f"{cells.format(index)}, NVIDIA A100-SXM4-40GB" for index in range(2))
    program.write_text(f"#!/bin/sh\ncat <<END\n{rows}\nEND\n")
    program.chmod(0o755)
    assert NvidiaSmi(str(program), str(tmp_path / "version")).devices(soon()) == stub().devices(soon())


@pytest.mark.parametrize(
    ("mode", "broken"),
    [
        ("lost", Device(1, unusable="GPU is lost")),
        ("forbidden", Device(1, unusable="Insufficient Permissions")),
        ("reset", device(1, unusable="GPU requires reset")),
        ("cold", device(1, unusable="GPU requires reset")),
        ("recovery", device(1, unusable="recovery action is Reset")),
        ("drain", device(1)),
        ("driver of 2023", device(1)),
        ("no uuid", device(1, uuid=None, unusable="Unknown Error")),
    ],
)
def test_state_of_one_gpu_is_its_own(stub: Stub, mode: str, broken: Device) -> None:
    assert stub(mode, 3).devices(soon()) == [device(0), broken, device(2)]


@pytest.mark.parametrize(
    ("mode", "differing"),
    [
        ("unified", {"memory_total": None, "mig_mode": None}),
        ("mig", {"mig_mode": "Enabled"}),
        ("exclusive", {"compute_mode": "Exclusive_Process"}),
        ("prohibited", {"compute_mode": "Prohibited", "unusable": "compute mode is Prohibited"}),
        ("crash late", {}),
        ("chatty", {}),
    ],
)
def test_gpu_is_described_as_nvidia_smi_does(stub: Stub, mode: str, differing: dict[str, Any]) -> None:
    assert stub(mode, 1).devices(soon()) == [device(0, **differing)]


def test_function_that_an_old_driver_lacks_leaves_its_value_unknown(stub: Stub, tmp_path: Path) -> None:
    assert stub(count=1, directory=compiled(tmp_path, "-DOLD")).devices(soon()) == [device(0, mig_mode=None)]


@pytest.mark.parametrize(
    ("mode", "what", "todo"),
    [
        ("permission", "nvmlInit: Insufficient Permissions (4)", "SELinux"),
        ("driver", "nvmlInit: Driver Not Loaded (9)", "modprobe nvidia"),
        ("mismatch", "nvmlInit: Driver/library version mismatch (18)", "reload"),
        ("unknown", "nvmlInit: Unknown Error (999)", "recreated"),
        ("no count", "nvmlDeviceGetCount: Unknown Error (999)", "dmesg"),
        ("crash", "NVML was ended by SIGSEGV", "reinstall"),
    ],
)
def test_failure_tells_the_call_the_reason_and_a_remedy(stub: Stub, mode: str, what: str, todo: str) -> None:
    with pytest.raises(DiscoveryError) as error:
        stub(mode).devices(soon())
    assert what in message(error)
    assert todo in message(error)


def test_hang_inside_the_library_ends_at_the_deadline(stub: Stub) -> None:
    with pytest.raises(DiscoveryError, match="NVML did not answer within"):
        stub("hang").devices(soon(1))


def test_missing_library_is_an_error(stub: Stub, tmp_path: Path) -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has NVML")
    with pytest.raises(DiscoveryError, match=r"NVML Shared Library Not Found \(12\)"):
        stub(directory=tmp_path).devices(soon())


@pytest.mark.parametrize(("mode", "count"), [("nogpu", 0), ("ok", 0)])
def test_host_without_gpus_has_none(stub: Stub, mode: str, count: int) -> None:
    assert stub(mode, count).devices(soon()) == []


def test_gpu_that_only_the_driver_knows_is_not_no_gpu(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "gpus/0000:01:00.0").mkdir(parents=True)
    with pytest.raises(DiscoveryError, match="NVML finds no GPU, but the driver is bound to 1"):
        stub(count=0).devices(soon())


def test_python_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(DiscoveryError, match="NVML: '/no/such/python' cannot be run: No such file or directory"):
        Nvml("/no/such/python").devices(soon())


# pynvml as it may be found


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
def test_child_that_is_no_child_of_ours_is_an_error(stub: Stub, tmp_path: Path, answer: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    with pytest.raises(DiscoveryError, match="the child process gave no answer"):
        stub(python=str(python)).devices(soon())


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
    assert nvml_child.survey(old) == answer
    del old.NVMLLibraryMismatchError, old.nvmlDeviceGetComputeMode
    assert nvml_child.survey(old) == answer


# auto: one after the other


class Fake:
    def __init__(self, name: str, answer: list[Device] | str) -> None:
        self.name, self.answer, self.started, self.asked = name, answer, False, False

    def start(self) -> None:
        self.started = True

    def devices(self, deadline: float) -> list[Device]:
        self.asked = True
        if isinstance(self.answer, str):
            raise DiscoveryError(self.answer)
        return self.answer


def test_auto_asks_the_first_alone_where_it_answers() -> None:
    first, second = Fake("nvml", [Device(0)]), Fake("nvidia-smi", [])
    auto = Auto([first, second])
    auto.start()
    assert (first.started, second.started, auto.name) == (True, False, "auto")
    assert auto.devices(soon()) == [Device(0)]
    assert (second.asked, auto.name) == (False, "nvml")


def test_auto_takes_no_gpu_for_an_answer() -> None:
    assert Auto([Fake("nvml", []), Fake("nvidia-smi", "not asked")]).devices(soon()) == []


def test_auto_asks_the_second_where_the_first_fails() -> None:
    auto = Auto([Fake("nvml", "NVML failed"), Fake("nvidia-smi", [Device(0)])])
    assert auto.devices(soon()) == [Device(0)]
    assert auto.name == "nvidia-smi"


def test_auto_tells_what_each_said_where_none_answers() -> None:
    with pytest.raises(DiscoveryError) as error:
        Auto([Fake("nvml", "NVML is ill"), Fake("nvidia-smi", "nvidia-smi was not found")]).devices(soon())
    assert message(error) == "no GPU can be listed: NVML is ill; nvidia-smi was not found"


def test_auto_asks_nobody_after_the_deadline() -> None:
    second = Fake("nvidia-smi", [Device(0)])
    with pytest.raises(DiscoveryError, match="nvidia-smi was not asked, as no time was left"):
        Auto([Fake("nvml", "NVML did not answer"), second]).devices(time.monotonic())
    assert not second.asked


def test_auto_is_nvml_then_nvidia_smi(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub("driver")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DiscoveryError, match=r"NVML failed: .*; nvidia-smi was not found on PATH"):
        create("auto").devices(soon())
    stub("ok")
    auto = create("auto")
    auto.start()
    assert auto.devices(soon()) == [device(0), device(1)]
    assert auto.name == "nvml"
