import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_ENGINES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "externalresource" / "engines"


def test_discovery_script_is_measured_beside_flinks() -> None:
    if not list(_ENGINES.glob("flink-*/lib/python*/site-packages/pyflink/plugins/*/nvidia-gpu-discovery.sh")):
        pytest.skip(f"no Flink in {_ENGINES}: the benchmark or the tests of engines install it")
    command = [sys.executable, str(_BENCHMARKS / "discovery_script.py"), "--quick"]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    rows = re.findall(r"^ +8  (7 living|8 dead) +([18]) +([\d.]+) +([\d.]+) +([\d.]+)", out, re.MULTILINE)
    assert [(held, asked) for held, asked, *_ in rows] == 2 * [("7 living", "1"), ("8 dead", "1"), ("8 dead", "8")]
    assert all(float(number) > 0 for row in rows for number in row[2:])


def test_each_of_a_herd_gets_a_gpu_of_its_own() -> None:
    command = [sys.executable, str(_BENCHMARKS / "herd.py"), "--script", "ours", "--size", "16"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert re.findall(r"^ours +16 +(\d+) +(\d+) +(\d+)", done.stdout, re.MULTILINE) == [("16", "16", "0")], done
    assert done.returncode == 0


def test_herd_that_waits_is_served_in_its_order() -> None:
    command = [sys.executable, str(_BENCHMARKS / "herd.py"), "--wait", "--size", "20", "--hold", "0.05"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert re.findall(
        r"^ +20 +(\d+) +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +2  (?:met|missed)$", done.stdout, re.MULTILINE
    ) == ["20"]
    assert "\nserved in their order: yes;" in done.stdout
    assert done.returncode == 0


def test_claims_are_measured_beside_their_floor() -> None:
    command = [sys.executable, str(_BENCHMARKS / "claim.py"), "--runs", "3", "--devices", "4", "--devices", "9"]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    rows = re.findall(r"^ +(4|9)  (all but one|all, of \w+: \w+) +(\d+) +(\d+) +([\d.]+)", out, re.MULTILINE)
    assert [(number, held) for number, held, *_ in rows] == [
        (number, held)
        for held in ("all but one", "all, of living: refused", "all, of dead: granted")
        for number in ("4", "9")
    ]
    assert all(float(number) > 0 for row in rows for number in row[2:])


def test_backends_are_not_measured_where_nothing_answers() -> None:
    command = [sys.executable, str(_BENCHMARKS / "backends.py")]
    empty = os.environ | {"PATH": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=empty)
    assert done.returncode == 1
    assert done.stderr.startswith("backends.py: nvidia-smi was not found on PATH")
