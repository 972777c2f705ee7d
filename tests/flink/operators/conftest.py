from pathlib import Path

import pytest

from tests.support.flink.operators import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path)
    made.configure()
    return made
