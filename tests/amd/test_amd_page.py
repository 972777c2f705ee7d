"""What docs/drivers.md says of the driver of AMD's GPUs: its command is run, its options are those that there are."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from externalresource_amd.driver import Options
from tests.support.amd_tools import amd_smi, listed, static, uuid

SECTION = (Path(__file__).parents[2] / "docs/drivers.md").read_text().partition("\n## amd:")[2].partition("\n## ")[0]


def test_command_of_the_page_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = amd_smi(tmp_path, [listed(gpu) for gpu in range(4)], [static(gpu) for gpu in range(4)])
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", f"{uuid(2)},{uuid(3)}")
    [(command, output)] = re.findall(
        r"^```console\n\$ externalresource (.*?)\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE
    )
    given = ["-o", f"command={tool}", "-o", f"coordination-file={tmp_path}/ledger", "--"]
    words = command.replace(" -- ", f" {' '.join(given)} ").split()
    program = Path(sys.executable).with_name("externalresource")
    assert subprocess.run([program, *words], capture_output=True, text=True, check=True, timeout=60).stdout == output


def test_options_of_the_page_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `(.*?)` \|", SECTION, re.MULTILINE)
    assert sorted(rows) == sorted(field.name.replace("_", "-") for field in dataclasses.fields(Options))
