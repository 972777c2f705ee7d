"""What docs/drivers.md says of the driver of AMD's GPUs: its command is run, its options are those that there are."""

import dataclasses
import re
from pathlib import Path

import pytest

from externalresource_amd.driver import Options
from tests.support.amd_tools import amd_smi, listed, static, uuid
from tests.support.plugins import run_the_command_of

SECTION = (Path(__file__).parents[2] / "docs/drivers.md").read_text().partition("\n## amd:")[2].partition("\n## ")[0]


def test_command_of_the_page_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = amd_smi(tmp_path, [listed(gpu) for gpu in range(4)], [static(gpu) for gpu in range(4)])
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", f"{uuid(2)},{uuid(3)}")
    given = ["-o", f"command={tool}", "-o", f"coordination-file={tmp_path}/ledger"]
    said, printed = run_the_command_of(SECTION, *given)
    assert printed == said


def test_options_of_the_page_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `(.*?)` \|", SECTION, re.MULTILINE)
    assert sorted(rows) == sorted(field.name.replace("_", "-") for field in dataclasses.fields(Options))
