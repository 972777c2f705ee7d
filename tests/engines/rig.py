"""A host with stand-in GPUs and a real Flink cluster on it: nothing leaves localhost and the folder that is given."""

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import yaml

from externalresource.demo.flink_host import free_ports

OUR_SCRIPT = Path(sysconfig.get_path("scripts")) / "nvidia-gpu-discovery"

DOCUMENTATION = Path(__file__).parents[2] / "docs"

REAL_COORDINATION_FILE = Path("/var/tmp/flink-gpu-coordination")

Settings = dict[str, str | int]

_HOSTS = (
    "jobmanager.rpc.address",
    "jobmanager.bind-host",
    "rest.address",
    "rest.bind-address",
    "taskmanager.host",
    "taskmanager.bind-host",
)

_SMALL: Settings = {
    "jobmanager.memory.process.size": "768m",
    "taskmanager.memory.process.size": "768m",
    "taskmanager.memory.managed.size": "0m",
    "taskmanager.numberOfTaskSlots": 1,
}

# Flink's own are inherited from whoever runs the tests, and so is a mask of devices.
_FOREIGN = ("FLINK_", "HADOOP_", "CUDA_", "NVIDIA_", "EXTERNALRESOURCE_")

_NVIDIA_SMI = """\
#!/bin/sh
# Answers --query-gpu=FIELDS for {gpus} devices, in the format that csv,noheader,nounits gives.
for word; do
    case $word in --query-gpu=*) fields=${{word#*=}} ;; esac
done
[ -n "$fields" ] || {{ echo "stand-in: only --query-gpu is known, not $*"; exit 2; }}
IFS=,
index=0
while [ $index -lt {gpus} ]; do
    line=
    for field in $fields; do
        case $field in
            index) cell=$index ;;
            uuid | gpu_uuid) cell=GPU-00000000-0000-4000-8000-00000000000$index ;;
            name | gpu_name) cell='Stand-in GPU' ;;
            pci.bus_id | gpu_bus_id) cell=00000000:0$index:00.0 ;;
            memory.total) cell=81559 ;;
            compute_mode) cell=Default ;;
            *) cell='[N/A]' ;;
        esac
        line="$line${{line:+, }}$cell"
    done
    echo "$line"
    index=$((index + 1))
done
"""


def stand_in(folder: Path, gpus: int) -> Path:
    """The folder, now with an nvidia-smi in it that shows so many GPUs."""
    folder.mkdir()
    script = folder / "nvidia-smi"
    script.write_text(_NVIDIA_SMI.format(gpus=gpus))
    script.chmod(0o755)
    return folder


class Daemon:
    """A JVM that one of Flink's scripts became: start-foreground executes java in its place, and keeps the pid."""

    def __init__(self, script: Path, output: Path, environment: Mapping[str, str]) -> None:
        self.output = output
        # Its process group has a leader of its own, so that it can be killed whole when the JVM is gone.
        self._group = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "sleep", "infinity"], process_group=0)
        with output.open("wb") as stream:
            self._process = subprocess.Popen(
                # Even if whoever runs the tests is killed, no JVM stays behind.
                ["setpriv", "--pdeathsig", "KILL", script, "start-foreground"],
                cwd=output.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                process_group=self._group.pid,
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 90) -> None:
        """The log has the text."""
        deadline = time.monotonic() + seconds
        while text not in self.log:
            assert self.lives, f"the JVM ended with {self._process.returncode}:\n{self.log[-5000:]}"
            assert time.monotonic() < deadline, f"{text!r} is not in the log after {seconds} s:\n{self.log[-5000:]}"
            time.sleep(0.1)

    def kill(self) -> None:
        """The JVM is gone as by kill -9, and so is all that its script or its plugins started."""
        if self._group.returncode is None:
            os.killpg(self._group.pid, signal.SIGKILL)
            self._group.wait(timeout=30)
        self._process.wait(timeout=30)

    def kill_alone(self) -> None:
        """The JVM is gone as by kill -9; whatever it started lives on as long as it likes, or until `kill`."""
        self._process.kill()
        self._process.wait(timeout=30)

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class TaskManager(Daemon):
    def wait(self) -> Self:
        """It is a member of the cluster: its devices are discovered before it registers, with or without."""
        self.wait_for("Successful registration at resource manager")
        return self

    @property
    def devices(self) -> list[str]:
        """The indices that Flink says it discovered, in order; none if discovery failed."""
        said = re.search(r"Discover GPU resources: \[(.*)\]\.", self.log)
        return sorted(re.findall(r"GPU Device\((.*?)\)", said[1])) if said else []


class Cluster:
    """A JobManager, and as many TaskManagers with one GPU each as are started; `close` leaves no process behind."""

    def __init__(self, flink: Path, folder: Path, gpus: int) -> None:
        self._flink = flink
        self.own_script = flink / "plugins" / "external-resource-gpu" / "nvidia-gpu-discovery.sh"
        self._folder = folder
        _scratch(folder).mkdir()
        self._ports = free_ports(2)
        self._daemons: list[Daemon] = []
        self.coordination_file = folder / "coordination"
        self._real_file = _state(REAL_COORDINATION_FILE)
        self.environment = _environment(folder, stand_in(folder / "bin", gpus), self.coordination_file)
        self.coordinated = (
            f"--enable-coordination-mode --coordination-file {self.coordination_file} --backend nvidia-smi"
        )
        self.configuration = self.configure("conf", args=self.coordinated)

    def configure(
        self, name: str, *, args: str | None, script: Path = OUR_SCRIPT, more: Settings | None = None
    ) -> Path:
        """A config.yaml of its own, complete: all the files that Flink ships lie beside it."""
        return self._configure(name, _SMALL | _gpu(script, args) | (more or {}))

    def configure_as(self, page: str, places: Mapping[str, Path], more: Settings | None = None) -> Path:
        """The config.yaml that a page of the documentation shows, with what it names where that is here."""
        text = (DOCUMENTATION / page).read_text()
        [shown] = re.findall(r"^```yaml\n# config\.yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        settings = yaml.safe_load(shown)
        assert places.keys() <= set(settings.values()), f"{page} must name each of {[*places]}"
        here = {key: str(places.get(value, value)) for key, value in settings.items()}
        here["external-resource.gpu.param.discovery-script.args"] += f" --coordination-file {self.coordination_file}"
        return self._configure(page, {**here, **(more or {})})

    def _configure(self, name: str, settings: Settings) -> Path:
        shipped = self._flink / "conf"
        path = shutil.copytree(shipped, self._folder / name) / "config.yaml"
        java = yaml.safe_load(path.read_text())["env"]["java"]["opts"]["all"]
        path.write_text(yaml.safe_dump(_settings(self._folder, java, *self._ports) | settings, width=10_000))
        return path

    def start_job_manager(self) -> None:
        self._daemons.append(Daemon(*self._prepared("jobmanager.sh", self.configuration)))

    def start_task_manager(self, configuration: Path | None = None) -> TaskManager:
        """It is on its way; `wait` for it."""
        task_manager = TaskManager(*self._prepared("taskmanager.sh", configuration or self.configuration))
        self._daemons.append(task_manager)
        return task_manager

    def two_task_managers(self) -> tuple[TaskManager, TaskManager]:
        """They live and are members: those that are there already, else new ones."""
        living = [daemon for daemon in self._daemons if isinstance(daemon, TaskManager) and daemon.lives]
        living += [self.start_task_manager() for _ in range(2 - len(living))]
        first, second = (task_manager.wait() for task_manager in living)
        return first, second

    def submit(self, *words: str | Path) -> None:
        """`flink run` with these words has ended well."""
        command = [self._flink / "bin" / "flink", "run", *words]
        environment = self.environment | {"FLINK_CONF_DIR": str(self.configuration.parent)}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)
        causes = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line or "Caused" in line]
        assert done.returncode == 0, "\n".join(causes)

    def claims(self) -> list[tuple[str, int]]:
        """The first two columns of the coordination file: a device's index and its owner's pid."""
        rows = [line.split()[:2] for line in self.coordination_file.read_text().splitlines()]
        return sorted((index, int(pid)) for index, pid in rows)

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.kill()
        shutil.rmtree(_scratch(self._folder))  # 25 MB for each JVM
        assert _state(REAL_COORDINATION_FILE) == self._real_file, f"{REAL_COORDINATION_FILE} was touched"

    def _prepared(self, script: str, configuration: Path) -> tuple[Path, Path, dict[str, str]]:
        output = self._folder / f"{len(self._daemons)}-{script}.out"
        environment = self.environment | {"FLINK_CONF_DIR": str(configuration.parent)}
        return self._flink / "bin" / script, output, environment


def _environment(folder: Path, tools: Path, coordination_file: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return own | {
        "PATH": f"{tools}:{own['PATH']}",
        "FLINK_LOG_DIR": str(folder / "log"),
        "FLINK_PID_DIR": str(folder / "pid"),
        # On a host with a real GPU the driver's library would be asked first.
        "EXTERNALRESOURCE_GPU_BACKEND": "nvidia-smi",
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(coordination_file),
    }


def _scratch(folder: Path) -> Path:
    return folder / "scratch"


def _state(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def _settings(folder: Path, java: str, rpc_port: int, rest_port: int) -> Settings:
    settings: Settings = {
        # The last two halve the start-up on two cores.
        "env.java.opts.all": f"{java} -Djava.io.tmpdir={_scratch(folder)} -XX:+UseSerialGC -XX:TieredStopAtLevel=1",
        # A TaskManager that is up before its JobManager would wait for 10 s.
        "cluster.registration.error-delay": "200 ms",
        "jobmanager.rpc.port": rpc_port,
        "rest.port": rest_port,
    }
    return settings | dict.fromkeys(_HOSTS, "localhost")


def _gpu(script: Path, args: str | None) -> Settings:
    # One resource only: with two, Flink's own quoting disables both in standalone mode.
    gpu: Settings = {
        "external-resources": "gpu",
        "external-resource.gpu.amount": 1,
        "external-resource.gpu.driver-factory.class": "org.apache.flink.externalresource.gpu.GPUDriverFactory",
        "external-resource.gpu.param.discovery-script.path": str(script),
    }
    return gpu if args is None else gpu | {"external-resource.gpu.param.discovery-script.args": args}
