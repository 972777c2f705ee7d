"""A real Flink for the demo: a JobManager, TaskManagers and a client, all on localhost and in one folder."""

import contextlib
import importlib.util
import itertools
import json
import os
import random
import re
import shutil
import socket
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from externalresource.demo.processes import Process, Processes
from externalresource.errors import ExternalResourceError
from externalresource.flink import config_files

_JOB = "externalresource.demo.flink_job"
_SCRIPT = "nvidia-gpu-discovery"
_NEWEST_PYTHON = (3, 12)  # for which apache-beam, which apache-flink needs, has wheels
_FOREIGN = ("FLINK_", "PYFLINK_", "HADOOP_")  # set for another Flink
_JAVA = "env.java.opts.all"
# The first two make the start half as long on two cores; without the third, a JVM that is killed leaves a file in /tmp.
_FAST = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData"
_SETTINGS: dict[str, str | int] = {
    "cluster.registration.error-delay": "200 ms",  # a TaskManager that is up before its JobManager would wait for 10 s
    "jobmanager.memory.process.size": "768m",
    "taskmanager.memory.process.size": "768m",
    "taskmanager.memory.managed.size": "0m",
    "taskmanager.numberOfTaskSlots": 1,
    "python.fn-execution.memory.managed": "false",
    "python.executable": sys.executable,
    "python.client.executable": sys.executable,
    "jobmanager.rpc.address": "localhost",
    "jobmanager.bind-host": "localhost",
    "rest.address": "localhost",
    "rest.bind-address": "localhost",
    "taskmanager.host": "localhost",
    "taskmanager.bind-host": "localhost",
}


@dataclass(frozen=True, slots=True)
class TaskManager:
    number: int
    pid: int
    devices: Sequence[str]  # as its log tells


@dataclass(frozen=True, slots=True)
class Report:
    """What a subtask of the job was told, and what it read."""

    number: int
    pid: int
    task_manager: int  # its pid
    devices: Sequence[str]
    library: str
    answers: Sequence[tuple[int, int]]  # a digit's place among the unread ones, and what it was read as


class Flink(Processes):
    """A cluster in a folder, as yet without processes."""

    def __init__(self, folder: str, gpu_configuration: str) -> None:
        import pyflink

        home = os.path.dirname(os.path.abspath(pyflink.__file__))
        self._bin = os.path.join(home, "bin")
        super().__init__(folder, _environment(folder))
        self._client: Process
        _configure(os.path.join(home, "conf"), folder, gpu_configuration)

    def start(self, count: int) -> Iterator[TaskManager]:
        """Start a JobManager and so many TaskManagers at once, and yield these as they are members of the cluster."""
        self._start("the JobManager", "jobmanager.sh", "start-foreground")
        numbers = range(1, count + 1)
        started = [self._start(f"TaskManager {number}", "taskmanager.sh", "start-foreground") for number in numbers]
        for number, process in zip(numbers, started, strict=True):
            self.line(process, "Successful registration at resource manager")
            yield TaskManager(number, process.pid, _devices(process))

    def submit(self, parallelism: int, libraries: str) -> None:
        """Return when Flink has accepted the job."""
        self._client = self._start("the job", "flink", "run", "-pym", _JOB, str(parallelism), libraries)
        self.line(self._client, "Job has been submitted")

    def reports(self) -> list[Report]:
        """Return what the subtasks of the job say, once all is read."""
        return [Report(**report) for report in json.loads(self.line(self._client, '"answers"'))]

    def _start(self, name: str, script: str, *words: str) -> Process:
        return self.begin(name, os.path.join(self._bin, script), *words)


def check_installed(newest_python: tuple[int, int] = _NEWEST_PYTHON) -> None:
    if importlib.util.find_spec("pyflink") is None:
        if sys.version_info[:2] > newest_python:
            newest, this = (".".join(map(str, version)) for version in (newest_python, sys.version_info[:2]))
            raise ExternalResourceError(f"apache-flink installs on Python {newest} or older, and this is {this}")
        raise ExternalResourceError("apache-flink is missing: pip install 'externalresource[demo,flink]'")
    home = os.environ.get("JAVA_HOME")
    if shutil.which(os.path.join(home, "bin", "java") if home else "java") is None:
        where = f"JAVA_HOME, {home}, has no bin/java" if home else "java is not on PATH"
        raise ExternalResourceError(f"Flink needs Java, but {where}: sudo apt-get install default-jre-headless")


def discovery_script(name: str = _SCRIPT) -> str:
    path = os.path.join(sysconfig.get_path("scripts"), name)
    if not os.access(path, os.X_OK):
        raise ExternalResourceError(f"{path} is missing, which is installed with externalresource: install it again")
    return path


def _devices(process: Process) -> list[str]:
    if said := process.line("Discover GPU resources: ["):
        return sorted(re.findall(r"GPU Device\((.*?)\)", said))
    reason = process.line("STDERR: ") or process.complaint
    raise ExternalResourceError(f"{process.name} got no GPU: {reason.removeprefix('STDERR: ')}")


def _environment(folder: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return own | {
        "FLINK_CONF_DIR": os.path.join(folder, "conf"),
        "FLINK_LOG_DIR": os.path.join(folder, "log"),
        "FLINK_PID_DIR": os.path.join(folder, "pid"),
        "TMPDIR": os.path.join(folder, "tmp"),
    }


def _configure(shipped: str, folder: str, gpu_configuration: str) -> None:
    """Copy what Flink ships into the folder, with a configuration of our own."""
    conf = os.path.join(folder, "conf")
    scratch = os.path.join(folder, "tmp")
    shutil.copytree(shipped, conf)
    os.mkdir(scratch)
    java = dict(config_files.read(conf, config_files.ignore))[_JAVA].value
    rpc, rest = free_ports(2)
    settings = _SETTINGS | {
        _JAVA: f"{java} -Djava.io.tmpdir={scratch} {_FAST}",
        "jobmanager.rpc.port": rpc,
        "rest.port": rest,
    }
    with open(os.path.join(conf, "config.yaml"), "w", encoding="utf-8") as file:
        file.write(gpu_configuration)
        file.writelines(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses, below those that the kernel gives to whoever asks for any, as Flink does."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        lowest = int(file.read().split()[0])
    return list(itertools.islice(filter(_is_free, random.sample(range(10_000, lowest), 1_000)), count))


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server(("localhost", port)):
        return True
    return False
