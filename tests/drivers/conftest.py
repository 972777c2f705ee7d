import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.plugins import Install


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution: a module of its name, and the entry points that it offers to us."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    installed = []

    def install(name: str, code: str, entry_points: Mapping[str, str]) -> None:
        site = tmp_path / name
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(code, encoding="ascii")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="ascii")
        lines = [f"{entry} = {value}" for entry, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[externalresource]", *lines]), encoding="ascii")
        sys.path.append(str(site))
        installed.append(name)

    yield install
    for name in installed:
        sys.modules.pop(name, None)
