"""A Flink as the doctor finds it on a host, sound until a test spoils it."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from externalresource.flink.doctor import examination
from externalresource.flink.doctor.findings import Finding, Report

OUR_SCRIPT = Path(sysconfig.get_path("scripts")) / "nvidia-gpu-discovery"
FACTORY = "org.apache.flink.externalresource.gpu.GPUDriverFactory"
SERVICE = "META-INF/services/org.apache.flink.api.common.externalresource.ExternalResourceDriverFactory"
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


def the(report: Report, check: str) -> Finding:
    """The one thing that was found, and nothing beside it."""
    [found] = report.findings
    assert found.check == check
    return found


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as child:
        return child.pid


def call(*words: str | Path, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "externalresource", "doctor", *map(str, words)]
    return subprocess.run(command, env=os.environ | more, check=False, capture_output=True, text=True)
