"""A configuration, and no other than that."""

from pathlib import Path

import pytest

from tests.support.flink.config import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write one file; what it returns is the file's path."""

    def write(text: str | bytes, name: str = "config.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.fixture
def no_flink_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLINK_CONF_DIR", raising=False)
    monkeypatch.delenv("FLINK_HOME", raising=False)
