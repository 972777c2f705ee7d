"""What docs/drivers.md says of the RDMA driver: its command is run, its options are those that there are."""

import dataclasses
import re
from pathlib import Path

from externalresource_rdma.driver import Options
from tests.support.plugins import run_the_command_of
from tests.support.rdma_trees import ACTIVE, Tree

SECTION = (Path(__file__).parents[2] / "docs/drivers.md").read_text().partition("\n## rdma:")[2].partition("\n## ")[0]


def test_command_of_the_page_prints_what_the_page_says(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "sys")
    for number in range(2):
        tree.adapter(f"mlx5_{number}", None, ACTIVE, guid=f"506b:4b03:00c0:{number:04x}")
    given = ["-o", f"sysfs={tree.root}", "-o", f"coordination-file={tmp_path}/ledger"]
    said, printed = run_the_command_of(SECTION, *given)
    assert printed == said


def test_options_of_the_page_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `(.*?)` \|", SECTION, re.MULTILINE)
    assert sorted(rows) == sorted(field.name.replace("_", "-") for field in dataclasses.fields(Options))
