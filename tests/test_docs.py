"""What the documentation points at is there."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from externalresource.api import driver
from externalresource_gpu.script.options import DEFAULT_COORDINATION_FILE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^):#]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("suffix", ["", ".lock", ".queue", ".new", ".witness-0123456789abcdef"])
def test_what_cleans_temporary_files_is_told_to_leave_the_default_files(suffix: str) -> None:
    lines = (ROOT / "packaging" / "tmpfiles.d" / "externalresource.conf").read_text().splitlines()
    left = [line.removeprefix("x ") for line in lines if line.startswith("x ")]
    fpga = driver("fpga")(list).create_external_resource_driver({"enable-coordination-mode": "true"})
    for path in (DEFAULT_COORDINATION_FILE, fpga.coordination_file):
        assert any(fnmatch(f"{path}{suffix}", pattern) for pattern in left)
