"""An operator finds its TaskManager and what that holds: real processes, whose command lines are those of Flink's."""

import json
import os
import subprocess

import pytest

from externalresource import flink
from externalresource.errors import DiscoveryError
from tests.support.flink.operators import GPUS, SCRIPT, Cluster


def test_operator_is_told_what_its_task_manager_holds(cluster: Cluster) -> None:
    assert cluster.infos("--configDir", str(cluster.folder)) == GPUS[:2]


def test_operator_is_not_told_what_others_hold(cluster: Cluster) -> None:
    claim = f"{SCRIPT} 1 {cluster.args}".split()
    subprocess.run(claim, check=True, capture_output=True)  # by the process of this test
    assert cluster.infos("--configDir", str(cluster.folder)) == GPUS[2:]  # these are on one NUMA node


@pytest.mark.parametrize("folder", [".", "-c ."])
def test_configuration_is_relative_to_the_task_managers_folder(folder: str, cluster: Cluster) -> None:
    words = folder.split() if folder.startswith("-c") else ["--configDir", folder]
    assert cluster.infos(*words) == GPUS[:2]


def test_configuration_is_that_of_the_environment_if_the_task_manager_was_told_none(cluster: Cluster) -> None:
    assert cluster.infos(FLINK_CONF_DIR=str(cluster.folder)) == GPUS[:2]


@pytest.mark.parametrize("words", [("-D", "external-resource.gpu.amount=1"), ("-Dexternal-resource.gpu.amount=1",)])
def test_dynamic_properties_win(words: tuple[str, ...], cluster: Cluster) -> None:
    assert cluster.infos("--configDir", str(cluster.folder), *words, claims=1) == GPUS[:1]


def test_without_coordination_the_devices_are_those_that_the_driver_finds(cluster: Cluster) -> None:
    cluster.args = "--simulate=2"
    cluster.configure()
    assert [index for index, _ in json.loads(cluster.ask("-c", ".", claims=0))] == ["0", "1"]


def test_task_manager_that_holds_another_number_is_an_error_with_both(cluster: Cluster) -> None:
    said = cluster.ask("-c", ".", claims=0)
    assert said.startswith("DiscoveryError: the TaskManager (pid ")
    assert f" holds 0 devices of 'gpu' in {cluster.ledger}, not the 2 of its configuration" in said


def test_resource_that_is_not_configured_is_named_with_those_that_are(cluster: Cluster) -> None:
    (cluster.folder / "config.yaml").write_text("external-resources: gpus\nexternal-resource.gpus.amount: 1\n")
    said = cluster.ask("-c", ".", claims=0)
    assert "has no resource 'gpu' (it has: gpus), did you mean 'gpus'?" in said


def test_resource_without_a_driver_is_an_error_that_names_the_key(cluster: Cluster) -> None:
    (cluster.folder / "config.yaml").write_text("external-resources: gpu\nexternal-resource.gpu.amount: 1\n")
    said = cluster.ask("-c", ".", claims=0)
    assert said.startswith("ConfigurationError: external-resource.gpu.driver-factory.class is not set")


def test_process_that_works_for_no_task_manager_is_told_who_its_ancestors_are() -> None:
    with pytest.raises(DiscoveryError) as caught:
        flink.get_external_resource_infos("gpu")
    assert f"pid {os.getpid()} (" in str(caught.value)
    assert ", pid 1 (" in str(caught.value)
    assert "externalresource.claim" in str(caught.value)
