"""Each fault that leaves a Flink cluster without GPUs is made here for real, and found with evidence and remedy."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from externalresource.errors import ConfigurationError
from externalresource.flink.doctor import examination
from externalresource.flink.doctor.findings import ERROR, WARNING, Finding, NotLooked, Report
from externalresource.flink.task_manager import listens
from tests.support.processes import NEW_PIDS, as_another_user, in_namespaces

OUR_SCRIPT = Path(sysconfig.get_path("scripts")) / "nvidia-gpu-discovery"
FACTORY = "org.apache.flink.externalresource.gpu.GPUDriverFactory"
SERVICE = "META-INF/services/org.apache.flink.api.common.externalresource.ExternalResourceDriverFactory"
NOBODYS = 1  # a port on which no TaskManager listens
FOREIGN = ("FLINK_", "CUDA_", "NVIDIA_", "EXTERNALRESOURCE_")
AMOUNT, CLASS = "external-resource.gpu.amount", "external-resource.gpu.driver-factory.class"
PATH = "external-resource.gpu.param.discovery-script.path"
ARGS = "external-resource.gpu.param.discovery-script.args"


@dataclass
class Host:
    """A Flink that is as it should be, on a host with two GPUs, until a test spoils it."""

    folder: Path
    closed_port: int
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bin", "lib", "conf"):
            (self.folder / name).mkdir()
        self.plugin("external-resource-gpu", FACTORY)
        self.settings = {
            "external-resources": "gpu",
            AMOUNT: 1,
            CLASS: FACTORY,
            PATH: OUR_SCRIPT,
            ARGS: f"--enable-coordination-mode --coordination-file {self.ledger}",
            "rest.address": "localhost",
            "rest.port": self.closed_port,
        }

    @property
    def config(self) -> Path:
        return self.folder / "conf" / "config.yaml"

    @property
    def ledger(self) -> Path:
        return self.folder / "coordination"

    def plugin(self, name: str, factory: str | None) -> Path:
        folder = self.folder / "plugins" / name
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / f"{name}.jar", "w") as jar:
            jar.writestr(*(("README", "nothing") if factory is None else (SERVICE, f"# drivers\n{factory}\n")))
        return folder

    def write(self, settings: Mapping[str, object] | None = None) -> None:
        self.settings |= settings or {}
        lines = [f"{key}: {value}\n" for key, value in self.settings.items() if value is not None]
        self.config.write_text("".join(lines))

    def examine(self, settings: Mapping[str, object] | None = None, **more: str) -> Report:
        self.write(settings)
        return examination.examine(str(self.config.parent), rest=more.get("rest"))

    def line(self, key: str) -> str:
        """Where a key stands."""
        lines = self.config.read_text().splitlines()
        return f"{self.config}:{next(number for number, line in enumerate(lines, 1) if line.startswith(f'{key}:'))}: "


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that somebody has, so that nobody else gets it, and on which nobody listens."""
    with socket.socket() as keeper:
        keeper.bind(("localhost", 0))
        yield keeper.getsockname()[1]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> Host:
    for name in os.environ:
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_SIMULATE", "2")
    found = Host(tmp_path, closed_port)
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_COORDINATION_FILE", str(found.ledger))
    return found


def the(report: Report, check: str) -> Finding:
    """The one thing that was found, and nothing beside it."""
    [found] = report.findings
    assert found.check == check
    return found


# ---- nothing is wrong -----------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_is_wrong(host: Host) -> None:
    report = host.examine()
    assert report.findings == []
    assert report.summary.startswith(f"no problem found; looked at: configuration {host.config}, discovery script ")
    for part in (f"plugins folder {host.folder}/plugins", "devices of 'gpu'", f"coordination file {host.ledger}"):
        assert part in report.looked


def test_rest_api_that_is_not_there_is_not_looked_at_and_no_error(host: Host) -> None:
    [note] = host.examine().not_looked
    assert note.at == f"REST API http://localhost:{host.settings['rest.port']}"
    assert note.because == "Connection refused"


def test_looking_changes_nothing(host: Host) -> None:
    host.write()
    before = sorted(host.folder.rglob("*"))
    host.examine()
    assert sorted(host.folder.rglob("*")) == before


# ---- the configuration ----------------------------------------------------------------------------


def test_misspelt_coordination_flag(host: Host) -> None:
    stock = host.folder / "plugins" / "external-resource-gpu" / "nvidia-gpu-discovery.sh"
    stock.write_text("#!/bin/sh\n")
    stock.chmod(0o755)
    found = the(host.examine({PATH: stock, ARGS: "--enable-coordination"}), "coordination-flag")
    assert found.severity == ERROR
    assert found.evidence == f"{host.line(ARGS)}{ARGS}: --enable-coordination"
    assert found.remedy.startswith("write --enable-coordination-mode instead of --enable-coordination")
    right = f"--enable-coordination-mode --coordination-file {host.ledger}"
    assert host.examine({ARGS: right}).findings == []
    assert the(host.examine({ARGS: "--cordination-file /x"}), "coordination-flag").remedy.startswith(
        "write --coordination-file instead of --cordination-file"
    )


def test_of_a_script_that_nobody_knows_only_flinks_documented_flag_is_told(host: Host) -> None:
    script = host.folder / "gpus.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    found = the(host.examine({PATH: script, ARGS: "--whatever --enable-coordination"}), "coordination-flag")
    assert found.severity == WARNING
    assert found.problem.startswith("a script may ignore --enable-coordination, ")
    assert found.remedy.startswith("write --enable-coordination-mode instead of --enable-coordination")


@pytest.mark.parametrize("name", ["gpus.sh", "nvidia-gpu-discovery.sh"])
def test_documented_flag_beside_the_right_one_is_no_problem(host: Host, name: str) -> None:
    script = host.folder / name
    script.touch(0o755)
    both = f"--enable-coordination --enable-coordination-mode --coordination-file {host.ledger}"
    assert host.examine({PATH: script, ARGS: both}).findings == []


def test_our_script_knows_flinks_documented_flag_and_refuses_others_itself(host: Host) -> None:
    assert host.examine({ARGS: f"--enable-coordination --coordination-file {host.ledger}"}).findings == []
    found = the(host.examine({ARGS: "--enable-cordination"}), "options")
    assert found.evidence.startswith(f"{host.line(ARGS)}{ARGS}: --enable-cordination: unknown option")


def test_two_resources_on_a_standalone_cluster(host: Host) -> None:
    fpga = {"external-resource.fpga.amount": 1, "external-resource.fpga.driver-factory.class": "com.example.FPGA"}
    host.plugin("fpga", "com.example.FPGA")
    found = the(host.examine({"external-resources": "gpu;fpga", **fpga}), "several-resources")
    assert found.severity == ERROR
    assert found.evidence.startswith(f"{host.line('external-resources')}external-resources: gpu;fpga; ")
    assert '-D external-resources="gpu;fpga"' in found.evidence
    assert "list one resource" in found.remedy
    assert host.examine({"execution.target": "kubernetes-application"}).findings == []


def test_blanks_lost_in_flink_properties(host: Host) -> None:
    lost = "--enable-coordination-mode--coordination-file/x"
    found = the(host.examine({ARGS: lost}), "lost-blanks")
    assert found.evidence == f"{host.line(ARGS)}{ARGS}: {lost}"
    assert "FLINK_PROPERTIES" in found.remedy
    assert "EXTERNALRESOURCE_GPU_ENABLE_COORDINATION_MODE=true" in found.remedy
    assert the(host.examine({ARGS: "--coordination-file/x"}), "lost-blanks").problem.endswith("no script knows")


def test_blanks_that_flinks_image_is_going_to_remove(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLINK_PROPERTIES", f"taskmanager.numberOfTaskSlots: 1\n{ARGS}: --wait 3 --timeout 5\n")
    found = the(host.examine(), "lost-blanks")
    assert found.evidence == f"FLINK_PROPERTIES in the environment: {ARGS}: --wait 3 --timeout 5"


@pytest.mark.parametrize(
    ("amount", "evidence"),
    [(None, f"external-resources: gpu, and {AMOUNT} is not set"), (0, f"{AMOUNT}: 0"), ("two", f"{AMOUNT}: two")],
)
def test_missing_or_wrong_amount(host: Host, amount: object, evidence: str) -> None:
    found = the(host.examine({AMOUNT: amount}), "amount")
    place = host.line("external-resources" if amount is None else AMOUNT)
    assert (found.severity, found.evidence, found.remedy) == (ERROR, place + evidence, f"{AMOUNT}: 1")


def test_missing_factory(host: Host) -> None:
    found = the(host.examine({CLASS: None}), "factory")
    assert found.severity == ERROR
    assert found.evidence == f"{host.line('external-resources')}external-resources: gpu, and {CLASS} is not set"
    assert found.remedy.startswith(f"{CLASS}: the class of its driver ({FACTORY}")
    forwarded = {"external-resource.gpu.kubernetes.config-key": "nvidia.com/gpu"}
    assert the(host.examine(forwarded), "factory").severity == WARNING


def test_factory_that_no_jar_has(host: Host) -> None:
    found = the(host.examine({CLASS: "com.example.GPUs"}), "factory")
    assert found.evidence.startswith(f"{host.line(CLASS)}{CLASS}: com.example.GPUs; ")
    assert found.evidence.endswith(f"have {FACTORY}")
    assert found.remedy == f"{CLASS}: {FACTORY}"


def test_resource_that_is_not_listed(host: Host) -> None:
    found = the(host.examine({"external-resources": None}), "not-listed")
    assert found.evidence.startswith(f"{host.line(AMOUNT)}{AMOUNT}: 1; {host.config}: external-resources is not set")
    assert found.remedy == "external-resources: gpu"


@pytest.mark.parametrize("none", ["none", "", "[]"])
def test_nothing_is_asked_for(host: Host, none: str) -> None:
    host.settings = {"external-resources": none, "rest.port": host.closed_port}
    assert the(host.examine(), "not-listed").remedy == "external-resources: gpu"


def test_what_a_strict_reading_refuses_is_told_and_the_rest_goes_on(host: Host) -> None:
    wrong = {"external-resource.gpu.amout": 2, AMOUNT: "two", "external-resources.gpu.amount": 1}
    report = host.examine(wrong)
    listed = "external-resources"
    assert [finding.check for finding in report.findings] == ["amount", "configuration", "configuration"]
    assert [finding.evidence for finding in report.findings[1:]] == [
        f"{host.line('external-resource.gpu.amout')}external-resource.gpu.amout: unknown key, did you mean 'amount'?",
        f"{host.line(f'{listed}.gpu.amount')}{listed}.gpu.amount: unknown key, did you mean 'external-resources'?",
    ]
    assert "devices of 'gpu'" in report.looked


def test_errors_stand_before_warnings_and_nothing_is_told_twice(host: Host) -> None:
    host.ledger.write_text(f"0 {dead_pid()}\n")
    both = {key.replace(".gpu.", ".big."): value for key, value in host.settings.items() if ".gpu." in key}
    report = host.examine({**both, "external-resources": "gpu;big", "execution.target": "yarn-session", AMOUNT: 3})
    assert [finding.check for finding in report.findings] == ["devices", "stale-claims"]
    unread = {"external-resource.gpu.param.wait": 1}
    assert [finding.severity for finding in host.examine(unread).findings] == [ERROR, WARNING, WARNING]


def test_option_that_flinks_driver_does_not_read(host: Host) -> None:
    option = "external-resource.gpu.param.enable-coordination-mode"
    found = the(host.examine({option: "true", ARGS: None}), "unread-option")
    assert (found.severity, found.evidence) == (WARNING, f"{host.line(option)}{option}: true")
    assert found.remedy == f"{ARGS}: --enable-coordination-mode"


def test_configuration_of_task_managers_in_python_is_as_good(host: Host) -> None:
    (host.folder / "lib").rmdir()
    option = "external-resource.gpu.param.min-memory"
    settings = {CLASS: "gpu", PATH: None, ARGS: "--enable-coordination-mode --name 'A100'", option: 1}
    both = {key.replace(".gpu.", ".big."): value for key, value in settings.items()}
    more = {"external-resources": "gpu;big", "external-resource.big.amount": 1}
    assert host.examine({**settings, **both, **more}).findings == []
    assert host.examine({option: 10**6}).findings[0].check == "devices"


def test_script_of_a_task_manager_in_python_is_looked_at_like_flinks(host: Host) -> None:
    script = host.folder / "nvidia-gpu-discovery"
    script.write_text("#!/bin/sh\n")
    (host.folder / "lib").rmdir()
    assert the(host.examine({CLASS: "gpu", PATH: script}), "script").remedy == f"chmod a+x {script}"
    foreign = script.rename(host.folder / "gpus.sh")
    foreign.chmod(0o755)
    report = host.examine({PATH: foreign, ARGS: "--whatever"})
    assert (report.findings, "devices of 'gpu'" in report.looked) == ([], False)


def test_list_that_is_one_name_in_quotes(host: Host) -> None:
    host.config.with_name("flink-conf.yaml").write_text(f'external-resources: "gpu;fpga"\n{AMOUNT}: 1\n')
    report = examination.examine(str(host.config.parent), rest=f"http://localhost:{host.closed_port}")
    assert [finding.check for finding in report.findings] == ["not-listed", "configuration", "configuration"]
    assert "'gpu;fpga', one name with ';' in it: join names by ';', unquoted" in report.findings[1].evidence


def test_quotes_that_no_shell_removes(host: Host) -> None:
    found = the(host.examine({ARGS: "--name 'A100'"}), "quotes")
    assert found.evidence == f"{host.line(ARGS)}{ARGS}: --name 'A100'"


def test_lost_blanks_of_one_resource_hide_nothing_of_another(host: Host) -> None:
    other = {key.replace(".gpu.", ".big."): value for key, value in host.settings.items() if ".gpu." in key}
    wrong = {ARGS.replace(".gpu.", ".big."): "--nope", "external-resources": "gpu;big"}
    lost = {ARGS: "--enable-coordination-mode--coordination-file/x", "execution.target": "yarn-session"}
    report = host.examine({**other, **wrong, **lost})
    assert [finding.check for finding in report.findings] == ["lost-blanks", "options"]
    assert "unknown option" in report.findings[1].evidence
    assert ".big." in report.findings[1].evidence


def test_configuration_that_is_no_yaml(host: Host) -> None:
    host.config.write_text("external-resources: [gpu\n")
    report = examination.examine(str(host.config))
    assert the(report, "configuration").evidence.startswith(f"{host.config}:2: not YAML: ")
    assert "devices of 'gpu'" in report.looked


def test_two_configuration_files_in_one_folder(host: Host) -> None:
    host.write()
    legacy = host.config.with_name("flink-conf.yaml")
    legacy.write_text(host.config.read_text())
    found = the(examination.examine(str(host.config.parent)), "configuration")
    assert (found.severity, found.evidence) == (WARNING, f"{legacy} and {host.config}")


# ---- what lies on the host ------------------------------------------------------------------------


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


def test_plugins_folder_of_another_user_is_not_looked_at(host: Host) -> None:
    secret = host.folder / "plugins" / "secret"
    secret.mkdir(0o700)
    host.write()
    for folder in (host.folder, *host.folder.parents[:2]):
        folder.chmod(0o755)
    notes = as_another_user(lambda: examination.examine(str(host.config))).not_looked
    assert NotLooked(f"plugins folder {secret.parent}", f"{secret}: Permission denied") in notes


def test_plugins_folder_that_is_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLINK_PLUGINS_DIR", "/missing")
    found = the(host.examine(), "plugins")
    assert found.evidence == "/missing is no folder"


# ---- devices, masks, order ------------------------------------------------------------------------


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
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "support")
    (host.folder / "lib").rmdir()
    report = host.examine({CLASS: "breaking_driver:Factory", PATH: None, ARGS: None})
    assert report.findings == []
    assert NotLooked("devices of 'gpu'", "its driver failed: ValueError: no bus") in report.not_looked
    assert NotLooked("claims in /claims", "its driver failed: ValueError: no claims") in report.not_looked


# ---- the coordination file ------------------------------------------------------------------------


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as child:
        return child.pid


def test_stale_claims(host: Host) -> None:
    pid = dead_pid()
    host.ledger.write_text(f"0 {pid}\n")
    found = the(host.examine(), "stale-claims")
    assert (found.severity, found.evidence) == (WARNING, f"{host.ledger}: 0 of pid {pid}, since ?")
    assert found.remedy == f"externalresource release --dead --coordination-file {host.ledger}"


def test_claim_of_which_somebody_living_has_a_share_is_not_stale(host: Host) -> None:
    run = [sys.executable, "-m", "externalresource.cli.main", "run", "gpu=1", "--"]
    inner = [*run, "sh", "-c", "echo $$; exec sleep 60 >&2"]
    outer = f"import subprocess; print(subprocess.Popen({inner}, stdout=-1).stdout.readline().decode())"
    done = subprocess.run([*run, sys.executable, "-c", outer], check=True, stdout=subprocess.PIPE, text=True)
    try:
        assert len(host.ledger.read_text().splitlines()) == 1
        assert host.examine().findings == []
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)
    assert the(host.examine(), "stale-claims").evidence.startswith(f"{host.ledger}: 0 of pid ")


def test_claim_whose_pid_is_another_process_now(host: Host) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        host.ledger.write_text(f"0 {child.pid}\n")
        found = the(host.examine(), "foreign-claims")
        assert found.evidence == f"{host.ledger}: 0 {child.pid}, and pid {child.pid} is sleep"
        assert found.severity == WARNING  # it may be a TaskManager that is not written in Java
        assert found.remedy.startswith(f"if pid {child.pid} is no TaskManager of yours: ")
        command = found.remedy.partition(": externalresource ")[2].split()
        ours = [sys.executable, "-m", "externalresource.cli.main", *command]
        assert subprocess.run(ours, check=True, capture_output=True, text=True).stdout.startswith("released 0")
        assert host.examine().findings == []
        child.kill()


def test_claim_whose_pid_means_nothing_in_this_container(host: Host) -> None:
    host.ledger.write_text("0 1\n")
    found = the(in_namespaces(host.examine, NEW_PIDS), "foreign-claims")
    assert found.severity == WARNING  # it may be a TaskManager in its own container
    assert found.problem == "device 0 may stay taken for good: its owner's pid means nothing in this container"
    assert found.evidence.startswith(f"{host.ledger}: 0 1, and pid 1 is ")


def test_coordination_file_that_cannot_be_read(host: Host) -> None:
    host.ledger.write_text("rubbish\n")
    found = the(host.examine(), "coordination-file")
    assert found.evidence.startswith(f"{host.ledger}, line 1: cannot read 'rubbish'")
    assert found.remedy.endswith(f"rm {host.ledger} {host.ledger}.lock")


def test_coordination_file_without_a_folder(host: Host) -> None:
    missing = host.folder / "missing"
    found = the(
        host.examine({ARGS: f"--enable-coordination-mode --coordination-file {missing}/x"}), "coordination-file"
    )
    assert (found.evidence, found.remedy) == (f"{missing} is no folder", f"mkdir -p {missing}")


def test_relative_coordination_file_is_refused_by_our_script_and_not_looked_at_for_flinks(host: Host) -> None:
    relative = "--enable-coordination-mode --coordination-file gpus"
    found = the(host.examine({ARGS: relative}), "options")
    assert found.evidence.startswith(f"{host.line(ARGS)}{ARGS}: {relative}: ")
    assert "must be an absolute path, not 'gpus'" in found.evidence
    stock = host.folder / "nvidia-gpu-discovery.sh"
    stock.touch(0o755)
    report = host.examine({PATH: stock})
    assert report.findings == []
    assert report.not_looked[0].at == "coordination file"
    assert report.not_looked[0].because.startswith("gpus is relative: ")


def test_coordination_file_of_another_user(host: Host) -> None:
    host.ledger.touch(0o644)
    host.write()
    for folder in (host.folder, *host.folder.parents[:2]):
        folder.chmod(0o755)
    findings = as_another_user(lambda: examination.examine(str(host.config))).findings
    [found] = [finding for finding in findings if finding.check == "coordination-file"]
    assert found.evidence == f"{host.ledger} belongs to uid 0 (mode 0644), this is uid 65534"
    assert "--coordination-file" in found.remedy


# ---- the REST API ---------------------------------------------------------------------------------


@dataclass
class Cluster:
    """What answers as Flink's REST API."""

    url: str
    answers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def advertises(self, port: int, host: str = "localhost", **resources: float) -> str:
        one = {
            "id": f"localhost:{port}-a1b2c3",
            "path": f"pekko.tcp://flink@{host}:{port}/user/rpc/taskmanager_0",
            "totalResource": {"cpuCores": 1.0, "extendedResources": resources},
        }
        self.answers["/taskmanagers"] = json.dumps({"taskmanagers": [one]})
        return f"TaskManager {one['id']}"

    def logs(self, port: int, *lines: str) -> None:
        start = "2026-11-21 00:52:36,142 INFO  org.apache.flink.X [] - Enabled external resources: [gpu]"
        self.answers[f"/taskmanagers/localhost%3A{port}-a1b2c3/log"] = "\n".join(["first line", start, *lines, ""])


@pytest.fixture
def cluster(host: Host) -> Iterator[Cluster]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer = answers.get(self.path)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write((answer or "").encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - so it is called there
            pass

    with ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        found = Cluster(f"http://localhost:{server.server_port}")
        answers, asked = found.answers, found.asked
        host.settings["rest.port"] = server.server_port
        yield found
        server.shutdown()


@contextlib.contextmanager
def task_manager() -> Iterator[tuple[int, int]]:
    """The pid and the port of a process that looks like a TaskManager."""
    script = "import socket, sys; s = socket.create_server(('localhost', 0))\n"
    script += "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    main = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
    command = [sys.executable, "-c", script, main]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield child.pid, int(child.stdout.readline())
        child.kill()


FAILED = (
    "2026-11-21 00:52:36,164 WARN  org.apache.flink.externalresource.gpu.GPUDriver  [] - Discovery script exit with 3.",
    "STDOUT: ",
    "STDERR: no GPU today",
)
IGNORED = "The amount of the fpga;gpu should be configured. Will ignore that resource."
FOUND = "2026-11-21 00:52:36,164 INFO  o.a.f.GPUDriver [] - Discover GPU resources: [GPU Device(0), GPU Device(1)]."


def test_gpus_that_flink_advertises_and_nobody_holds(host: Host, cluster: Cluster) -> None:
    with task_manager() as (pid, port):
        who = cluster.advertises(port, gpu=1.0)
        report = host.examine()
    found = the(report, "undiscovered")
    assert found.severity == ERROR
    assert found.problem.startswith("a TaskManager advertises 1 of 'gpu' and has found 0")
    assert found.evidence == (
        f"{cluster.url}/taskmanagers: {who} (pid {pid}): extendedResources gpu=1; {host.ledger} has 0 of that pid; "
        "its log says: nothing of that"
    )
    assert "start the TaskManager again" in found.remedy
    assert f"REST API {cluster.url}" in report.looked


def test_gpus_that_a_task_manager_holds_are_no_problem(host: Host, cluster: Cluster) -> None:
    with task_manager() as (pid, port):
        cluster.advertises(port, gpu=1.0)
        command: list[object] = [OUR_SCRIPT, 1, *str(host.settings[ARGS]).split(), "--owner-pid", pid]
        subprocess.run([*map(str, command)], check=True, capture_output=True)
        assert host.examine().findings == []


def test_share_of_a_device_is_not_another_device(host: Host, cluster: Cluster) -> None:
    with task_manager() as (pid, port):
        cluster.advertises(port, gpu=2.0)
        host.ledger.write_text(f'0 {pid} {{"uuid":"GPU-1","shares":[{{"pid":{pid}}}]}}\n')
        assert f"{host.ledger} has 1 of that pid" in the(host.examine(), "undiscovered").evidence


def test_cluster_is_not_looked_for_behind_a_proxy(
    host: Host, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://localhost:{host.closed_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    cluster.answers["/taskmanagers"] = '{"taskmanagers": []}'
    assert f"REST API {cluster.url}" in host.examine().looked


def test_log_says_why_a_task_manager_elsewhere_found_nothing(host: Host, cluster: Cluster) -> None:
    port = NOBODYS
    who = cluster.advertises(port, gpu=2.0)
    cluster.logs(port, *FAILED)
    found = the(host.examine(), "undiscovered")
    assert found.evidence.startswith(f"{cluster.url}/taskmanagers: {who}: extendedResources gpu=2; ")
    assert found.evidence.endswith("its log says: Discovery script exit with 3. | STDERR: no GPU today")
    again = "INFO Enabled external resources: [gpu]"
    cluster.logs(port, *FAILED, again, FOUND)
    assert host.examine().findings == []
    cluster.logs(port, FOUND, again, *FAILED)
    assert the(host.examine(), "undiscovered").severity == ERROR


def test_task_manager_elsewhere_is_not_taken_for_one_here_with_the_same_port(host: Host, cluster: Cluster) -> None:
    with task_manager() as (_pid, port):
        cluster.advertises(port, host="192.0.2.1", gpu=2.0)  # of a network that nobody has
        cluster.logs(port, FOUND)
        assert host.examine().findings == []


def test_port_is_that_of_the_process_that_listens_on_it() -> None:
    with socket.create_server(("localhost", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert listens(os.getpid(), server.getsockname()[1])
        assert not listens(os.getpid(), client.getsockname()[1])
        assert not listens(os.getppid(), server.getsockname()[1])


def test_gpus_that_the_coordination_file_does_not_know(host: Host, cluster: Cluster) -> None:
    with task_manager() as (_pid, port):
        cluster.advertises(port, gpu=2.0)
        cluster.logs(port, FOUND)
        found = the(host.examine(), "uncoordinated")
    assert found.evidence.endswith(f"its log tells of 2; {host.ledger} has 0 of that pid")


def test_relative_coordination_file_says_nothing_of_a_task_manager(host: Host, cluster: Cluster) -> None:
    script = host.folder / "gpus.sh"
    script.touch(0o755)
    with task_manager() as (_pid, port):
        cluster.advertises(port, gpu=2.0)
        cluster.logs(port, FOUND)
        report = host.examine({PATH: script, ARGS: "--enable-coordination-mode --coordination-file gpus"})
    assert report.findings == []


def test_task_manager_of_which_nothing_is_known_is_not_looked_at(host: Host, cluster: Cluster) -> None:
    who = cluster.advertises(NOBODYS, gpu=1.0)
    report = host.examine()
    assert report.findings == []
    assert [note.at for note in report.not_looked] == [f"what {who} found of 'gpu'"]


def test_task_manager_that_does_not_advertise_what_is_configured(host: Host, cluster: Cluster) -> None:
    port = NOBODYS
    who = cluster.advertises(port, fpga=1.0)
    cluster.logs(port, FAILED[0].replace("Discovery script exit with 3.", IGNORED))
    report = host.examine()
    assert the(report, "not-advertised").evidence == (
        f"{cluster.url}/taskmanagers: {who}: extendedResources has fpga=1; its log says: {IGNORED}"
    )
    assert [note.at for note in report.not_looked] == [f"what {who} found of 'fpga'"]


def test_without_a_configuration_the_log_says_what_should_have_been_found(host: Host, cluster: Cluster) -> None:
    port = NOBODYS
    cluster.advertises(port, gpu=1.0)
    cluster.logs(port, f"INFO [] - Loading configuration property: {CLASS}, {FACTORY}", *FAILED)
    done = call("--rest", cluster.url)
    assert done.returncode == 1
    assert "its log says: Discovery script exit with 3. | STDERR: no GPU today\n" in done.stdout


def test_log_is_read_once_however_many_resources_there_are(host: Host, cluster: Cluster) -> None:
    cluster.advertises(NOBODYS, fpga=1.0, tpu=1.0)
    cluster.logs(NOBODYS, *FAILED)
    host.examine()
    assert len([path for path in cluster.asked if path.endswith("/log")]) == 1


def test_what_was_not_looked_at_is_told_once(host: Host) -> None:
    script = host.folder / "gpus.sh"
    script.touch(0o755)
    host.settings |= {PATH: script, ARGS: "--enable-coordination-mode --coordination-file gpus"}
    other = {key.replace(".gpu.", ".big."): value for key, value in host.settings.items() if ".gpu." in key}
    report = host.examine({**other, "external-resources": "gpu;big", "execution.target": "yarn-session"})
    assert [note.at for note in report.not_looked].count("coordination file") == 1


def test_cluster_without_task_managers(host: Host, cluster: Cluster) -> None:
    cluster.answers["/taskmanagers"] = '{"taskmanagers": []}'
    assert the(host.examine(), "cluster").severity == WARNING


@pytest.mark.parametrize(
    ("answer", "because"),
    [
        (None, "it answers 404 Not Found"),
        ("<html>", "what answers there is not Flink"),
        ("[]", "what answers there is"),
        (
            '{"taskmanagers": [{"id": "a", "totalResource": {"extendedResources": {"gpu": "two"}}}]}',
            "what answers there is not Flink",
        ),
    ],
)
def test_other_server_at_the_address_is_not_looked_at(
    host: Host, cluster: Cluster, answer: str | None, because: str
) -> None:
    if answer is not None:
        cluster.answers["/taskmanagers"] = answer
    report = host.examine()
    assert report.findings == []
    assert report.not_looked[0].because.startswith(because)


def test_server_that_speaks_no_http_is_not_looked_at(host: Host) -> None:
    with socket.create_server(("localhost", 0)) as server:
        host.settings["rest.port"] = server.getsockname()[1]

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        other = threading.Thread(target=answer)
        other.start()
        [note] = host.examine().not_looked
        other.join()
    assert note.because == "what answers there is not Flink"


def test_address_that_is_named_wins(host: Host, cluster: Cluster) -> None:
    cluster.advertises(NOBODYS)
    host.settings["rest.port"] = host.closed_port
    assert the(host.examine(rest=f"{cluster.url}/"), "not-advertised").evidence.startswith(
        f"{cluster.url}/taskmanagers"
    )
    with pytest.raises(ConfigurationError, match="http://host:8081, not 'localhost:8081'"):
        host.examine(rest="localhost:8081")


def test_address_of_the_web_page_is_that_of_the_api(host: Host, cluster: Cluster) -> None:
    cluster.answers["/taskmanagers"] = '{"taskmanagers": []}'
    assert f"REST API {cluster.url}" in host.examine(rest=f"{cluster.url}/#/overview").looked


@pytest.mark.parametrize(
    "wrong", ["http://host:abc", "http://[::1", "http://", "ftp://host", "http://a b", "http://h:0"]
)
def test_address_that_is_none_is_refused(host: Host, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"not {wrong!r}")):
        host.examine(rest=wrong)


def test_address_of_the_configuration_may_be_of_ipv6_or_none(host: Host) -> None:
    [note] = host.examine({"rest.address": "::1"}).not_looked
    assert note.at == f"REST API http://[::1]:{host.closed_port}"
    assert note.because != "what answers there is not Flink"
    [note] = host.examine({"rest.port": "abc"}).not_looked
    assert note.because == "that is no address: nonnumeric port: 'abc'"


# ---- the page -------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")


def test_page_shows_what_the_command_prints(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration, console = (
        re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]
        for language in ("yaml", "console")
    )
    command, expected = console.removeprefix("$ ").split("\n", 1)
    assert command == "externalresource doctor conf"
    for name in ("bin", "lib"):
        (host.folder / name).rmdir()
    monkeypatch.chdir(host.folder)
    host.config.write_text(f"{configuration}rest.port: {host.closed_port}\n")
    said = call("conf").stdout
    assert (
        said.replace(f":{host.closed_port}:", ":8081:").replace(f"{host.folder}/plugins", "/opt/flink/plugins")
        == expected
    )


def test_page_tells_of_each_check() -> None:
    rooms = Path(examination.__file__).parent.glob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in rooms)
    checks = set(re.findall(r'Finding\(\s*"([\w-]+)"', source)) | {"container-mask"}
    told = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall("`(.*?)`", row)}
    assert told - {"check"} == checks


# ---- the command ----------------------------------------------------------------------------------


def call(*words: str | Path, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "externalresource.cli.main", "doctor", *map(str, words)]
    return subprocess.run(command, env=os.environ | more, check=False, capture_output=True, text=True)


def test_command_says_what_it_looked_at(host: Host) -> None:
    host.write()
    done = call(host.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == examination.examine(str(host.config)).summary
    assert call(FLINK_CONF_DIR=str(host.config.parent)).stdout == done.stdout


def test_command_tells_each_problem_with_evidence_and_remedy(host: Host) -> None:
    host.write({AMOUNT: 0})
    (host.folder / "plugins" / "empty").mkdir()
    done = call(host.config)
    assert done.returncode == 1
    assert done.stdout.startswith(
        "problem: the amount of 'gpu' is no positive integer: Flink passes the resource over\n"
        f"  evidence: {host.line(AMOUNT)}{AMOUNT}: 0\n"
        f"  remedy:   {AMOUNT}: 1\n\n"
        "problem: "
    )
    assert done.stdout.splitlines()[-1].startswith("2 problems; looked at: ")


def test_command_hands_nothing_unprintable_to_a_terminal(host: Host) -> None:
    host.write()
    host.ledger.write_text(f"a%1Bb {dead_pid()}\n")
    done = call(host.config)
    assert f"{host.ledger}: a?b of pid " in done.stdout
    assert "\x1b" not in done.stdout
    assert "a\\u001bb" in call(host.config, "--format", "json").stdout


def test_warnings_alone_are_no_failure(host: Host) -> None:
    host.write()
    host.ledger.write_text(f"0 {dead_pid()}\n")
    done = call(host.config)
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "warning")
    assert done.stdout.splitlines()[-1].startswith("1 warning; looked at: ")


def test_command_tells_programs_the_same(host: Host) -> None:
    host.write()
    done = call(host.config, "-D", f"{AMOUNT}=two", "--format", "json")
    said = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert said["findings"] == [
        {
            "check": "amount",
            "severity": "error",
            "problem": "the amount of 'gpu' is no positive integer: no TaskManager starts",
            "evidence": f"-D {AMOUNT}: two",
            "remedy": f"{AMOUNT}: 1",
        }
    ]
    assert f"configuration {host.config}" in said["looked_at"]
    assert said["not_looked_at"][0]["because"] == "Connection refused"


def test_without_a_configuration_the_host_is_looked_at(host: Host) -> None:
    done = call()
    assert done.returncode == 0
    assert "not looked at: Flink's configuration: no configuration is named, and neither FLINK_CONF_DIR " in done.stdout
    assert done.stdout.endswith(
        f"no problem found; looked at: devices of 'gpu', masks and device order, coordination file {host.ledger}\n"
    )


def test_configuration_that_is_not_there_is_a_problem(host: Host) -> None:
    done = call("/missing/config.yaml")
    assert done.returncode == 1
    assert "  evidence: /missing/config.yaml cannot be read: No such file or directory\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"), [(("-D", "amount"), "'amount' is no property"), (("--rest", "x"), "not 'x'")]
)
def test_wrong_use_is_one_line_and_status_2(host: Host, words: tuple[str, ...], message: str) -> None:
    done = call(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_problems_are_coloured_on_a_terminal_only(host: Host) -> None:
    host.write({AMOUNT: 0})
    assert "\x1b" not in call(host.config).stdout
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "externalresource.cli.main", "doctor", str(host.config)]
    subprocess.run(command, check=False, stdout=follower)
    assert "\x1b[31m\x1b[1mproblem\x1b[0m" in os.read(leader, 1000).decode()
    os.close(leader)
    os.close(follower)
