import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.plugins import Install, Once


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Return a folder that is filled once, by whichever worker of pytest-xdist needs it first."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            folder, filled = root / name, root / f"{name}.filled"
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return made


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
