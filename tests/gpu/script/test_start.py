import os
import subprocess
import sys

import externalresource
import externalresource_gpu

# What takes a millisecond or more, and is not needed to start nvidia-smi.
COSTLY = {"collections", "contextlib", "dataclasses", "enum", "functools", "json", "re", "signal", "typing"}


def test_until_nvidia_smi_is_started_the_script_imports_nothing_that_costs() -> None:
    code = (
        "import sys; from externalresource_gpu import backends; from externalresource_gpu.script import main; "
        "backends.create('nvidia-smi').start(); print(*sys.modules)"
    )
    source = os.pathsep.join(
        os.path.dirname(package.__path__[0]) for package in (externalresource, externalresource_gpu)
    )
    answer = subprocess.run(
        [sys.executable, "-SsPc", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert COSTLY & {*answer.stdout.split()} == set()
