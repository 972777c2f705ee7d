"""A real standalone cluster of Spark on this host: nothing leaves localhost and the folder that is given."""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar

from .rig import Daemon

# Of whoever runs the tests.
_FOREIGN = ("SPARK_", "PYSPARK_", "CUDA_", "NVIDIA_", "EXTERNALRESOURCE_")

_SMALL_JAVA = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData"

# Beside the configuration that is tested.
_DEFAULTS = f"""
spark.ui.enabled                                    false
spark.cores.max                                     2
spark.scheduler.minRegisteredResourcesRatio         1
spark.scheduler.maxRegisteredResourcesWaitingTime   60s
spark.driver.memory                                 512m
spark.executor.memory                               512m
spark.driver.defaultJavaOptions                     {_SMALL_JAVA}
spark.executor.defaultJavaOptions                   {_SMALL_JAVA}
"""


Some = TypeVar("Some", bound=Daemon)


class Worker(Daemon):
    def wait(self) -> Self:
        """It is a member of the cluster: its devices are discovered before it registers."""
        self.wait_for("Successfully registered with master")
        return self

    @property
    def devices(self) -> list[str]:
        """The addresses that Spark says it discovered."""
        said = re.search(r"gpu -> \[name: gpu, addresses: (.*)\]", self.log)
        assert said, self.log
        return said[1].split(",")


class Cluster:
    """A master, and as many workers as are started; `close` leaves no process behind."""

    def __init__(self, environment: Path, folder: Path, settings: str, defaults: str, more: dict[str, str]) -> None:
        """`settings` are those of spark-env.sh, `defaults` of spark-defaults.conf, `more` of whoever starts Spark."""
        self._spark = next(environment.glob("lib/python3*/site-packages/pyspark"))
        self._folder = folder
        self._daemons: list[Daemon] = []
        (folder / "conf").mkdir()
        (folder / "conf" / "spark-env.sh").write_text(settings)
        (folder / "conf" / "spark-defaults.conf").write_text(defaults + _DEFAULTS)
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self._environment = own | more | _places(self._spark, folder, environment / "bin" / "python")
        self._url = ""

    def start_master(self) -> None:
        master = self._start(Daemon, "master.Master", (), {})
        master.wait_for("New state: ALIVE")
        [self._url] = re.findall(r"Starting Spark master at (\S+)", master.log)

    def start_worker(self, *words: str, **environment: str) -> Worker:
        """It is on its way; `wait` for it."""
        folder = self._folder / f"worker-{len(self._daemons)}"
        words = ("--cores", "1", "--memory", "1g", "--work-dir", str(folder), *words, self._url)
        return self._start(Worker, "worker.Worker", words, environment)

    def workers(self) -> list[Worker]:
        """Those that live, at least two: new ones, if need be. All are members."""
        living = [daemon for daemon in self._daemons if isinstance(daemon, Worker) and daemon.lives]
        living += [self.start_worker() for _ in range(2 - len(living))]
        return [worker.wait() for worker in living]

    def submit(self, *words: str | Path, **environment: str) -> str:
        """What the job prints, once it has ended well."""
        command: list[str | Path] = [self._spark / "bin" / "spark-submit", "--master", self._url, *words]
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment | environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return done.stdout

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.kill()

    def _start(self, kind: type[Some], name: str, words: Sequence[str], environment: dict[str, str]) -> Some:
        script = self._folder / f"{len(self._daemons)}-{name}.sh"
        where = ("--host", "localhost", "--port", "0", "--webui-port", "0")
        command = [str(self._spark / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", *where, *words]
        script.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")  # as all of Spark's own become the JVM in the end
        script.chmod(0o755)
        daemon = kind(script, script.with_suffix(".out"), self._environment | environment)
        self._daemons.append(daemon)
        return daemon


def _places(spark: Path, folder: Path, python: Path) -> dict[str, str]:
    return {
        "SPARK_HOME": str(spark),
        "SPARK_CONF_DIR": str(folder / "conf"),
        "SPARK_LOCAL_DIRS": str(folder / "scratch"),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_HOSTNAME": "localhost",
        "SPARK_DAEMON_MEMORY": "256m",
        # The port of its REST server is the same for all masters of a host.
        "SPARK_DAEMON_JAVA_OPTS": f"{_SMALL_JAVA} -Dspark.master.rest.enabled=false",
        "PYSPARK_PYTHON": str(python),
    }
