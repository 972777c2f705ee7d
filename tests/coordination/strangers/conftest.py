import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from externalresource.coordination import Coordination
from tests.support.claiming import gpus, me


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Yield a coordination file in a folder that all users may write."""
    warm = Coordination(f"{tmp_path}/warm", "gpu")  # imports all that is needed: other users may not be able to read it
    warm.claim(gpus(1), 1, me(), wait=0.01)
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name, "shared")
        folder.mkdir()
        folder.chmod(0o777)
        yield f"{folder}/gpus"
    assert os.getuid() == 0
