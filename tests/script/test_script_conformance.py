"""The driver of scripts passes the tests that every driver passes."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from externalresource.testing import DriverConformance


def script(folder: Path, text: str) -> Mapping[str, str]:
    path = folder / "fpga.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return {"discovery-script.path": str(path)}


class TestScript(DriverConformance):
    factory = "script"
    wrong_options = MappingProxyType(
        {
            "discovery-script.path": "",
            "discovery-script.args": "'",
            "discovery-script.timeout": "0",
            "device-class": "a/b",
            "environment-variable": "",
        }
    )

    def machine(self, folder: Path, amount: int) -> Mapping[str, str]:
        return script(folder, f"seq {amount}")

    def unusable(self, folder: Path) -> Mapping[str, str]:
        return script(folder, """echo '{"index": 0}'; echo '{"index": 1, "unusable": "too hot"}'""")

    def failing(self, folder: Path) -> Mapping[str, str]:
        return script(folder, "exit 1")

    def slow(self, folder: Path) -> Mapping[str, str]:
        return script(folder, "exec sleep 600")
