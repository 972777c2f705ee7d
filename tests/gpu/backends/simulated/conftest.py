from pathlib import Path

import pytest

from tests.support.backends import Written


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Return a function that writes the description of a machine, and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "gpus.yaml"
        path.write_text(text)
        return str(path)

    return write
