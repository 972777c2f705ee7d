"""Real TaskManagers of Flink 2.3 and 1.20 ask our discovery script for their GPUs."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import externalresource

from .environments import marks
from .rig import DOCUMENTATION, OUR_SCRIPT, Cluster, TaskManager, stand_in

pytestmark = marks()

Pair = tuple[TaskManager, TaskManager]


def test_two_task_managers_hold_disjoint_devices(cluster: Cluster, pair: Pair) -> None:
    assert sorted(pair[0].devices + pair[1].devices) == ["0", "1"]
    assert cluster.claims() == held_by(*pair)


def test_the_logs_name_the_devices_where_the_page_looks_for_them(cluster: Cluster, pair: Pair) -> None:
    [command] = re.findall(r"^\$ (grep .*)$", (DOCUMENTATION / "flink.md").read_text(), re.MULTILINE)
    logs = Path(cluster.environment["FLINK_LOG_DIR"])
    done = subprocess.run(command, shell=True, cwd=logs.parent, check=True, capture_output=True, text=True)
    assert sorted(re.findall(r"GPU Device\((.)\)", done.stdout)) == ["0", "1"]


def test_a_claim_names_the_device_beyond_its_index(cluster: Cluster, pair: Pair) -> None:
    for line in cluster.coordination_file.read_text().splitlines():
        index, _pid, identity = line.split(maxsplit=2)
        assert json.loads(identity)["uuid"] == f"GPU-00000000-0000-4000-8000-00000000000{index}"


def test_a_third_task_manager_is_refused_with_the_reason_in_its_log(cluster: Cluster, pair: Pair) -> None:
    with cluster.start_task_manager() as third:
        third.wait()
        assert third.devices == []
        reason = re.search(r"WARN .* Discovery script exit with 1\.\nSTDOUT: \nSTDERR: (.*)", third.log)
        assert reason
        assert "1 wanted, 0 of 2 free; held by pid" in reason[1]
        assert {str(task_manager.pid) for task_manager in pair} <= set(re.findall(r"\d+", reason[1]))
    assert cluster.claims() == held_by(*pair)


def test_the_device_of_a_killed_task_manager_goes_to_the_next_one(cluster: Cluster, pair: Pair) -> None:
    victim, survivor = pair
    victim.kill()
    heir = cluster.start_task_manager().wait()
    assert heir.devices == victim.devices
    assert cluster.claims() == held_by(survivor, heir)


def test_without_arguments_a_device_is_given_and_nothing_recorded(cluster: Cluster, pair: Pair) -> None:
    with cluster.start_task_manager(cluster.configure("no-arguments", args=None)) as another:
        assert another.wait().devices == ["0"]
    assert cluster.claims() == held_by(*pair)


def test_python_shares_the_configuration_with_flink(
    cluster: Cluster, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{stand_in(tmp_path / 'bin', gpus=3)}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with externalresource.runtime_context(cluster.configuration) as context:
        assert [info.get_property("index") for info in context.get_external_resource_infos("gpu")] == ["2"]
        assert cluster.claims() == [*held_by(*pair), ("2", os.getpid())]
    assert cluster.claims() == held_by(*pair)


def test_flinks_own_script_honours_our_claims(cluster: Cluster, pair: Pair) -> None:
    done = ask(cluster, cluster.own_script, cluster.coordination_file)
    assert (done.returncode, done.stdout) == (1, "Could not get enough GPU resources.\n")


def test_claims_of_flinks_own_script_are_honoured(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "coordination"
    args = f"--enable-coordination-mode --coordination-file {file}"
    with cluster.start_task_manager(cluster.configure("own", args=args, script=cluster.own_script)) as before:
        assert before.wait().devices == ["0"]
        assert file.read_text() == f"0 {before.pid}\n"
        done = ask(cluster, OUR_SCRIPT, file)
        assert (done.returncode, done.stdout) == (0, "1\n")


def held_by(*task_managers: TaskManager) -> list[tuple[str, int]]:
    """What the coordination file must say, by what Flink's logs say."""
    return sorted((index, each.pid) for each in task_managers for index in each.devices)


def ask(cluster: Cluster, script: Path, file: Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [script, "1", "--enable-coordination-mode", "--coordination-file", file]
    return subprocess.run(command, env=cluster.environment, check=False, capture_output=True, text=True, timeout=60)
