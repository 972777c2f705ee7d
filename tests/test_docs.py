"""What the documentation points at is there."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from externalresource.api import driver
from externalresource_gpu.script.options import DEFAULT_COORDINATION_FILE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^):#]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_a_page_lead_to_one_of_its_headings(page: Path) -> None:
    targets = re.findall(r"\]\(([^):#]*\.md)?#([^)]+)\)", page.read_text())
    assert [target for target in targets if target[1] not in anchors(page.parent / (target[0] or page.name))] == []


def anchors(page: Path) -> list[str]:
    """Return what the headings of a page go by, as GitHub does it: in small letters, with hyphens for blanks."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    paths = [*(ROOT / "tests").rglob("test_*.py")]
    there = {path.name for path in paths}.union(*(re.findall(r"def (test_\w+)\(", path.read_text()) for path in paths))
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", page.read_text()))
    assert sorted(named - there) == []


def test_guarantee_is_told_without_names_of_tests() -> None:
    assert "test_" not in (ROOT / "docs" / "coordination.md").read_text()


@pytest.mark.parametrize("suffix", ["", ".lock", ".queue", ".new", ".witness-0123456789abcdef"])
def test_what_cleans_temporary_files_is_told_to_leave_the_default_files(suffix: str) -> None:
    lines = (ROOT / "packaging" / "tmpfiles.d" / "externalresource.conf").read_text().splitlines()
    left = [line.removeprefix("x ") for line in lines if line.startswith("x ")]
    fpga = driver("fpga")(list).create_external_resource_driver({"enable-coordination-mode": "true"})
    for path in (DEFAULT_COORDINATION_FILE, fpga.coordination_file):
        assert any(fnmatch(f"{path}{suffix}", pattern) for pattern in left)
