"""A TaskManager of which an operator or a worker's Python asks: real processes, with command lines like Flink's."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

MAIN = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
SCRIPT = f"{sys.executable} -P -m externalresource_gpu.script.main"
# Lets the script claim as Flink does, as its child, and starts a worker two processes away, as PyFlink does.
TASK_MANAGER = """
import os, subprocess, sys
if os.environ.get("CLAIM"):
    subprocess.run(os.environ["CLAIM"].split(), check=True, stdout=subprocess.DEVNULL)
if os.environ.get("FPGAS"):
    import externalresource
    options = {"coordination-file": os.environ["FPGAS"]}
    held = externalresource.claim("fpga", driver_factory="boards:boards", options=options)
worker = f"cd /; '{os.environ.get('PYTHON', sys.executable)}' -c '{os.environ['WORKER']}' 2>&1; exit $?"
sys.exit(subprocess.run(["bash", "-c", worker]).returncode)
"""
WORKER = """
import json, sys
from externalresource.errors import ExternalResourceError
from externalresource.flink import get_external_resource_infos
try:
    infos = get_external_resource_infos("gpu")
except ExternalResourceError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(json.dumps(sorted([info.get_property("index"), info.get_property("uuid")] for info in infos)))
"""
PYTHON = str(Path(sysconfig.get_path("scripts")) / "externalresource-python")
GPUS = [[str(index), f"GPU-5100000{index}-0000-5000-8000-000085d94462"] for index in range(4)]


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "gpus"
        self.args = f"--simulate=4 --enable-coordination-mode --coordination-file={self.ledger}"

    def configure(self, amount: int = 2, more: str = "") -> None:
        (self.folder / "config.yaml").write_text(
            f"external-resources: gpu\n"
            f"external-resource.gpu.amount: {amount}\n"
            f"external-resource.gpu.driver-factory.class: org.apache.flink.externalresource.gpu.GPUDriverFactory\n"
            f'external-resource.gpu.param.discovery-script.args: "{self.args}"\n{more}'
        )

    def ask(self, *arguments: str, claims: int = 2, worker: str = WORKER, **variables: str) -> str:
        """Return what an operator of a TaskManager that claimed so many GPUs was told."""
        claim = f"{SCRIPT} {claims} {self.args}" if claims else ""
        done = subprocess.run(
            [sys.executable, "-c", TASK_MANAGER, MAIN, *arguments],
            cwd=self.folder,
            env=os.environ | {"CLAIM": claim, "WORKER": worker.replace("'", '"')} | variables,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout.strip()

    def infos(self, *arguments: str, claims: int = 2, **variables: str) -> object:
        return json.loads(self.ask(*arguments, claims=claims, **variables))


def outside(*words: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PYTHON, *words], check=False, capture_output=True, text=True, timeout=60, **more)
