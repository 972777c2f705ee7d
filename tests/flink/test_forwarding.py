"""What Flink would request from Kubernetes and YARN for the same configuration."""

import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from externalresource.errors import ConfigurationError
from externalresource.flink import forwarding
from externalresource.flink.forwarding import forwarded

BOTH = {
    "external-resources": "gpu;rdma;fpga",
    "external-resource.gpu.amount": 2,
    "external-resource.gpu.kubernetes.config-key": "nvidia.com/gpu",
    "external-resource.gpu.yarn.config-key": "yarn.io/gpu",
    "external-resource.rdma.amount": 1,
    "external-resource.rdma.kubernetes.config-key": "rdma/hca_shared_devices_a",
    "external-resource.fpga.amount": 3,
}
VERSION = "1.30"


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("kubernetes", {"nvidia.com/gpu": 2, "rdma/hca_shared_devices_a": 1}),
        ("yarn", {"yarn.io/gpu": 2}),
    ],
)
def test_amounts_are_requested_under_their_keys_and_without_a_key_not_at_all(
    to: str, expected: Mapping[str, int]
) -> None:
    assert forwarded(BOTH, to=to) == expected


def test_overrides_win() -> None:
    assert forwarded(BOTH, to="yarn", overrides={"external-resource.gpu.amount": "4"}) == {"yarn.io/gpu": 4}


def test_nothing_is_requested_for_no_resources() -> None:
    assert forwarded({"external-resources": "none"}, to="kubernetes") == {}


@pytest.mark.parametrize("to", ["kubernetes", "yarn"])
def test_two_names_on_one_key_are_refused(to: str) -> None:
    config = {**BOTH, f"external-resource.gpu.{to}.config-key": "k/x", f"external-resource.fpga.{to}.config-key": "k/x"}
    with pytest.raises(ConfigurationError, match="must not be 'k/x'"):
        forwarded(config, to=to)


def test_blank_key_is_skipped_where_flink_is_followed_and_an_error_otherwise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = {**BOTH, "external-resource.gpu.kubernetes.config-key": " "}
    with pytest.raises(ConfigurationError, match="must not be empty"):
        forwarded(config, to="kubernetes")
    with caplog.at_level(logging.WARNING):
        assert forwarded(config, to="kubernetes", lenient=True) == {"rdma/hca_shared_devices_a": 1}
    assert "must not be empty" in caplog.text


def test_part_of_an_amount_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"must be a positive integer, not '0\.5'"):
        forwarded({**BOTH, "external-resource.gpu.amount": 0.5}, to="kubernetes")


def test_other_targets_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="to kubernetes or yarn, not to 'mesos'"):
        forwarded(BOTH, to="mesos")


def test_configuration_may_be_a_file(tmp_path: Path) -> None:
    lines = [f"{key}: {value}" for key, value in BOTH.items()]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert forwarded(tmp_path, to="yarn") == {"yarn.io/gpu": 2}


# ---- the command line -----------------------------------------------------------------------------


def call(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    lines = [f"{key}: {value}" for key, value in BOTH.items()]
    (folder / "config.yaml").write_text("\n".join(lines))
    command = [sys.executable, "-m", "externalresource", "forward", *words]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)


def test_command_prints_the_part_of_a_pod_template(tmp_path: Path) -> None:
    done = call(tmp_path, ".", "--to", "kubernetes")
    assert yaml.safe_load(done.stdout) == forwarding.pod({"nvidia.com/gpu": 2, "rdma/hca_shared_devices_a": 1})
    assert (done.stderr, done.returncode) == ("", 0)


def test_command_prints_the_resources_of_a_container_request(tmp_path: Path) -> None:
    assert call(tmp_path, ".", "--to", "yarn").stdout.split() == ["KEY", "AMOUNT", "yarn.io/gpu", "2"]
    done = call(tmp_path, ".", "--to", "yarn", "--format", "json", "-D", "external-resource.gpu.amount=4")
    assert json.loads(done.stdout) == [{"key": "yarn.io/gpu", "amount": 4}]


def test_command_says_that_nothing_is_requested(tmp_path: Path) -> None:
    done = call(tmp_path, ".", "--to", "yarn", "-D", "external-resources=fpga")
    assert done.stdout == "Nothing is requested of yarn: no resource has a yarn.config-key.\n"


def test_command_refuses_what_flink_could_not_read(tmp_path: Path) -> None:
    done = call(tmp_path, ".", "--to", "yarn", "-D", "external-resource.gpu.amount=two")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("external-resource.gpu.amount must be a positive integer, not 'two'\n")


# ---- the pod --------------------------------------------------------------------------------------


def test_pod_requests_what_it_limits() -> None:
    [container] = forwarding.pod({"nvidia.com/gpu": 2})["spec"]["containers"]  # type: ignore[index] # of a literal
    assert container == {
        "name": "flink-main-container",
        "resources": {"limits": {"nvidia.com/gpu": "2"}, "requests": {"nvidia.com/gpu": "2"}},
    }


def test_pod_fits_kubernetes_own_schema() -> None:
    pod = forwarding.pod(forwarded(BOTH, to="kubernetes"))
    kubernetes_validate.validate(pod, VERSION, strict=True)
    pod["spec"] = {"containers": [{"name": "x", "resources": {"limit": {}}}]}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSION, strict=True)


# ---- the page -------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "kubernetes-and-yarn.md").read_text(encoding="utf-8")
CONFIGURATION = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]
CONSOLE = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]


@pytest.mark.parametrize(("command", "output"), re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", CONSOLE, re.MULTILINE))
def test_page_shows_what_the_command_prints(command: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIGURATION)
    words = shlex.split(command)
    assert words[0] == "externalresource"
    ours = [sys.executable, "-m", "externalresource", *words[1:]]
    assert subprocess.run(ours, cwd=tmp_path, check=True, capture_output=True, text=True).stdout == output
