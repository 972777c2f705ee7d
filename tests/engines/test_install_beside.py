"""Our wheel and an engine share one environment."""

from pathlib import Path

import pytest

from .environments import environment, lock, run

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(900),  # the first run on a machine installs the engines
]


@pytest.mark.parametrize(
    ("package", "version", "module"),
    [
        ("apache-flink", "2.3.0", "pyflink"),
        pytest.param("apache-flink", "1.20.1", "pyflink", marks=pytest.mark.sweep),
        ("pyspark", "4.3.0", "pyspark"),
    ],
)
def test_the_wheel_installs_and_runs_beside(
    package: str, version: str, module: str, wheel: Path, tmp_path: Path
) -> None:
    # The environments of the cluster tests serve here too: of those, the clusters use only Flink's own files.
    folder = environment(package, version)
    pip = (folder / "bin" / "python", "-m", "pip")
    with lock(folder):
        # pip keeps what is installed under the same version number; and only what is named is held to its version.
        run(*pip, "uninstall", "--yes", "externalresource")
        run(*pip, "install", wheel, f"{package}=={version}")
        run(*pip, "check")
        where = run(
            folder / "bin" / "python", "-c", f"import {module}, externalresource as e; print(e.__file__)", cwd=tmp_path
        )
        assert Path(where.strip()).is_relative_to(folder)
        assert "Usage: externalresource" in run(folder / "bin" / "externalresource", "--help", cwd=tmp_path)
        assert run(folder / "bin" / "nvidia-gpu-discovery", "1", "--simulate", "2", cwd=tmp_path) == "0\n"
