"""What lies on the host, and its devices: each fault is made here for real."""

import os
import subprocess
from pathlib import Path

import pytest

from externalresource.flink.doctor import examination
from externalresource.flink.doctor.findings import ERROR, WARNING, NotLooked
from tests.support.flink.doctor import AMOUNT, ARGS, CLASS, PATH, Host, the
from tests.support.processes import as_another_user


def test_relative_script_without_flink_home(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    script = host.folder / "plugins" / "external-resource-gpu" / "nvidia-gpu-discovery.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (host.folder / "elsewhere").mkdir()
    monkeypatch.chdir(host.folder / "elsewhere")
    found = the(host.examine({PATH: None, ARGS: None}), "script-path")
    assert found.severity == ERROR
    assert found.evidence.startswith(f"{PATH} is not set, so it is plugins/external-resource-gpu/nvidia-gpu-discovery")
    assert found.remedy == f"{PATH}: {script}, or export FLINK_HOME={host.folder}"
    monkeypatch.setenv("FLINK_HOME", str(host.folder))
    assert host.examine().findings == []
    monkeypatch.delenv("FLINK_HOME")
    monkeypatch.chdir(host.folder)
    assert the(host.examine(), "script-path").severity == WARNING


def test_script_that_is_not_executable(host: Host) -> None:
    script = host.folder / "nvidia-gpu-discovery"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o644)
    found = the(host.examine({PATH: script}), "script")
    assert found.evidence == f"{host.line(PATH)}{PATH}: {script}, whose mode is 644"
    assert found.remedy == f"chmod a+x {script}"


def test_script_that_is_not_there_or_has_a_blank_in_its_path(host: Host) -> None:
    found = the(host.examine({PATH: "/missing/gpus.sh"}), "script")
    assert found.evidence == f"{host.line(PATH)}{PATH}: /missing/gpus.sh, which does not exist"
    assert the(host.examine({PATH: "/opt/my gpus.sh"}), "script").problem.endswith("cannot be run")


@pytest.mark.parametrize("first", ["#!/missing/sh", "#!/bin/sh\r"])
def test_script_that_cannot_be_started(host: Host, first: str) -> None:
    script = host.folder / "nvidia-gpu-discovery"
    script.write_text(f"{first}\nexit 1\n")
    script.chmod(0o755)
    found = the(host.examine({PATH: script}), "script")
    assert found.evidence == f"{host.line(PATH)}{PATH}: {script}: its first line is {first!r}"
    assert "must name an interpreter" in found.remedy


@pytest.mark.parametrize("first", ["echo 0", "", "#!", "#! "])
def test_script_that_names_no_interpreter_is_run_by_java_and_not_by_python(host: Host, first: str) -> None:
    script = host.folder / "nvidia-gpu-discovery"
    script.write_text(f"{first}\nexit 0\n")
    script.chmod(0o755)
    assert host.examine({PATH: script}).findings == []
    with pytest.raises(OSError, match="Exec format error"):
        subprocess.run([script], check=False)
    (host.folder / "lib").rmdir()  # for TaskManagers in Python there is no folder of plugins
    found = the(host.examine({CLASS: "gpu"}), "script")
    assert found.evidence == f"{host.line(PATH)}{PATH}: {script}: its first line is {first!r}"


def test_folder_of_plugins_without_a_jar(host: Host) -> None:
    ours = host.folder / "plugins" / "ours"
    ours.mkdir()
    (ours / "nvidia-gpu-discovery").touch()
    found = the(host.examine(), "plugins")
    assert found.evidence == f"{ours} contains only nvidia-gpu-discovery"
    assert "remove the folder" in found.remedy


def test_plugins_folder_that_is_not_known_is_not_looked_at(host: Host) -> None:
    (host.folder / "lib").rmdir()
    api = f"REST API http://localhost:{host.closed_port}"
    assert [note.at for note in host.examine().not_looked] == ["plugins folder", api]


def test_plugins_folder_of_another_user_is_not_looked_at(open_host: Host) -> None:
    secret = open_host.folder / "plugins" / "secret"
    secret.mkdir(0o700)
    open_host.write()
    notes = as_another_user(lambda: examination.examine(str(open_host.config))).not_looked
    assert NotLooked(f"plugins folder {secret.parent}", f"{secret}: Permission denied") in notes


def test_plugins_folder_that_is_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLINK_PLUGINS_DIR", "/missing")
    found = the(host.examine(), "plugins")
    assert found.evidence == "/missing is no folder"


def test_more_devices_wanted_than_there_are(host: Host) -> None:
    found = the(host.examine({AMOUNT: 3}), "devices")
    assert (found.severity, found.evidence) == (ERROR, f"{AMOUNT}: 3; this host has 2")


def test_amount_is_read_once_and_as_java_reads_it(host: Host) -> None:
    assert the(host.examine({AMOUNT: "+3"}), "devices").evidence == f"{AMOUNT}: 3; this host has 2"
    assert the(host.examine({AMOUNT: "9" * 5000}), "amount").problem.endswith("no TaskManager starts")


def test_mask_hides_the_devices(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert host.examine().findings == []
    found = the(host.examine({AMOUNT: 2}), "container-mask")
    assert found.evidence == f"{AMOUNT}: 2; 0: hidden by CUDA_VISIBLE_DEVICES=1"
    assert found.remedy.startswith("unset CUDA_VISIBLE_DEVICES")


def test_mask_that_flinks_script_does_not_look_at(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = host.folder / "nvidia-gpu-discovery.sh"
    stock.write_text("#!/bin/sh\n")
    stock.chmod(0o755)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = the(host.examine({PATH: stock, ARGS: None}), "container-mask")
    assert (found.severity, found.evidence) == (WARNING, "CUDA_VISIBLE_DEVICES=1 in the environment")


@pytest.mark.parametrize("mask", ["void", "none", ""])
def test_container_without_gpus(host: Host, monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", mask)
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_SIMULATE", "0")
    found = the(host.examine(), "container-mask")
    assert found.evidence == f"NVIDIA_VISIBLE_DEVICES={mask}; this host has no device of 'gpu'"
    assert "--gpus" in found.remedy


def test_devices_that_cannot_be_listed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = host.folder / "bin" / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho 'Driver/library version mismatch'\nexit 18\n")
    broken.chmod(0o755)
    monkeypatch.delenv("EXTERNALRESOURCE_GPU_SIMULATE")
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_BACKEND", "nvidia-smi")
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    found = the(host.examine(), "devices")
    assert "Driver/library version mismatch" in found.evidence


def test_device_order_of_unlike_gpus(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_SIMULATE", "mixed")
    found = the(host.examine(), "device-order")
    assert found.severity == WARNING
    assert found.evidence == "GPUs of several kinds: NVIDIA A10, NVIDIA A100-PCIE-40GB; CUDA_DEVICE_ORDER is not set"
    assert found.remedy.startswith("export CUDA_DEVICE_ORDER=PCI_BUS_ID")
    assert host.examine({"containerized.taskmanager.env.CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).findings == []


def test_driver_that_breaks_is_not_looked_at(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "support")
    (host.folder / "lib").rmdir()
    report = host.examine({CLASS: "breaking_driver:Factory", PATH: None, ARGS: None})
    assert report.findings == []
    assert NotLooked("devices of 'gpu'", "its driver failed: ValueError: no bus") in report.not_looked
    assert NotLooked("claims in /claims", "its driver failed: ValueError: no claims") in report.not_looked
