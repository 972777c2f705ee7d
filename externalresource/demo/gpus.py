"""The GPUs that the demos divide: those of this host, or simulated ones where it has too few."""

import os
import shlex
from typing import Any

from externalresource.coordination import Claim
from externalresource.demo import text
from externalresource.drivers import create_driver
from externalresource.errors import DiscoveryError

_CONFIGURATION = """\
external-resources: gpu
external-resource.gpu:
  amount: 1
  driver-factory.class: org.apache.flink.externalresource.gpu.GPUDriverFactory
{script}  param.discovery-script.args: --enable-coordination-mode{simulated}
"""
_SCRIPT = "  param.discovery-script.path: {}\n"


class Gpus:
    """So many GPUs, or more if the host has more. The simulated ones are claimed in a file in the folder."""

    def __init__(self, folder: str, wanted: int) -> None:
        usable = _usable()
        self.count = max(usable, wanted)
        self.simulated = usable < wanted
        self.first_line = _first_line(usable, wanted)
        self.libraries = "numpy" if self.simulated else "cupy,torch,numpy"
        self._coordination_file = os.path.join(folder, "coordination")
        # Real GPUs may be in use: they are claimed in the file of all who coordinate on this host.
        options = {"coordination-file": self._coordination_file} if self.simulated else {}
        self._driver: Any = create_driver("gpu", options)

    def configuration(self, script: str | None = None) -> str:
        """Return what a TaskManager reads, in Flink's own keys; real Flink needs a script, too."""
        words = f" --simulate {self.count}\n    --coordination-file {shlex.quote(self._coordination_file)}"
        return _CONFIGURATION.format(
            script="" if script is None else _SCRIPT.format(script), simulated=words if self.simulated else ""
        )

    def claims(self) -> list[Claim]:
        return list(self._driver.held())


def _usable() -> int:
    if "EXTERNALRESOURCE_GPU_SIMULATE" in os.environ:  # what is listed then is not there
        return 0
    driver: Any = create_driver("gpu", {})
    try:
        return sum(info.get_property("unusable") is None for info in driver.devices())
    except DiscoveryError:
        return 0


def _first_line(usable: int, wanted: int) -> str:
    if usable >= wanted:
        return f"Nothing in this demo is simulated: this host has {text.count(usable, 'usable NVIDIA GPU')}."
    found = "no usable NVIDIA GPU was found"
    if usable:
        found = f"this host has only {text.count(usable, 'usable NVIDIA GPU')}"
    return f"The {text.count(wanted, 'GPU')} of this demo will be simulated, as {found}. All else is real."
