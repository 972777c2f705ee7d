"""What stands in the coordination file, and who may read it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from externalresource.flink.configuration import GPU_FACTORY
from externalresource.flink.doctor import examination
from externalresource.flink.doctor.findings import WARNING, Finding
from tests.support.flink.doctor import ARGS, CLASS, PATH, Host, dead_pid, the
from tests.support.processes import NEW_PIDS, as_another_user, in_namespaces


def test_stale_claims(host: Host) -> None:
    pid = dead_pid()
    host.ledger.write_text(f"0 {pid}\n")
    found = the(host.examine(), "stale-claims")
    assert (found.severity, found.evidence) == (WARNING, f"{host.ledger}: 0 of pid {pid}, since ?")
    assert found.remedy == f"externalresource release --dead --coordination-file {host.ledger}"


def test_claim_of_which_somebody_living_has_a_share_is_not_stale(host: Host) -> None:
    run = [sys.executable, "-m", "externalresource", "run", "gpu=1", "--"]
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
        assert found.remedy.startswith(f"only if pid {child.pid} does not use the device: ")
        command = found.remedy.partition(": externalresource ")[2].split()
        ours = [sys.executable, "-m", "externalresource", *command]
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
    assert found.evidence.endswith("mend the line, or empty the file once no owner lives")
    assert found.remedy.startswith("do what the evidence says")


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


def test_coordination_file_of_another_user(open_host: Host) -> None:
    open_host.ledger.touch(0o644)
    [found] = of_another_user(open_host)
    assert found.evidence == f"{open_host.folder} belongs to uid 0 (mode 0755), this is uid 65534"
    assert "--coordination-file" in found.remedy
    open_host.folder.chmod(0o1777)
    [found] = of_another_user(open_host)
    assert found.evidence == f"{open_host.ledger} belongs to uid 0 (mode 0644), this is uid 65534"


def test_coordination_file_of_another_user_that_all_may_replace_is_shared(open_host: Host) -> None:
    open_host.folder.chmod(0o777)
    for name in ("", ".lock"):
        Path(f"{open_host.ledger}{name}").touch(0o644)
    assert of_another_user(open_host) == []
    open_host.ledger.chmod(0o600)
    found, unreadable = of_another_user(open_host)
    assert unreadable.evidence.startswith(f"cannot read {open_host.ledger}: Permission denied")
    assert found.evidence == f"{open_host.ledger} belongs to uid 0 (mode 0600), this is uid 65534"


def of_another_user(host: Host) -> list[Finding]:
    """Return what another user is told of the coordination file."""
    host.write()
    findings = as_another_user(lambda: examination.examine(str(host.config))).findings
    return [finding for finding in findings if finding.check == "coordination-file"]


def test_file_of_a_driver_that_coordinates_by_default_is_looked_at(host: Host) -> None:
    file = f"{host.folder}/disks"
    params = {"external-resource.gpu.param.coordination-file": file, PATH: None, ARGS: None}
    assert f"coordination file {file}" in host.examine({CLASS: "nvme", **params}).looked
    assert f"coordination file {file}" not in host.examine({CLASS: GPU_FACTORY, **params}).looked
