"""What a running cluster says of its TaskManagers, compared with what they hold."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from externalresource.errors import ConfigurationError
from externalresource.flink.doctor.findings import ERROR, WARNING
from externalresource.flink.task_manager import listens
from tests.support.flink.doctor import ARGS, CLASS, FACTORY, OUR_SCRIPT, PATH, Cluster, Host, call, the

NOBODYS = 1  # a port on which no TaskManager listens


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
