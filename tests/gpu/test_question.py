"""Masks, MIG, filters and foreign use as whoever starts the script meets them: real processes, simulated GPUs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import externalresource
from externalresource.errors import DiscoveryError
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device
from externalresource_gpu.question import Question
from externalresource_gpu.script.options import Options

SCRIPT = [sys.executable, "-P", "-m", "externalresource_gpu.script.main"]
LONG = 60

MIG_ON = """
gpus:
  - uuid: GPU-a
    mig_mode: Enabled
    instances:
      - {uuid: MIG-1, profile: 1g.5gb}
      - {uuid: MIG-2, profile: 1g.5gb}
  - uuid: GPU-b
    mig_mode: Disabled
"""
MIG_OFF = "gpus: [{uuid: GPU-a, mig_mode: Disabled}, {uuid: GPU-b, mig_mode: Disabled}]"
IN_USE = "gpus: [{uuid: GPU-a, processes: [{pid: 4711, memory: 2000}]}]"
BESIDE_ONE_IN_USE = "gpus: [{uuid: GPU-a, processes: [{pid: 4711}]}, {uuid: GPU-b, processes: []}]"
LOST = "gpus: [{uuid: unknown, unusable: GPU is lost}]"
NOT_IN_USE = "gpus: [{uuid: GPU-a, processes: []}]"


class Script:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "gpus"
        self.machine = folder / "machine.yaml"

    def describe(self, machine: str) -> None:
        new = self.folder / "new.yaml"
        new.write_text(machine)
        new.replace(self.machine)

    def start(self, *words: str, **variables: str) -> "subprocess.Popen[str]":
        what = [] if any(word.startswith("--simulate") for word in words) else [f"--simulate={self.machine}"]
        outside = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_")}
        return subprocess.Popen(
            [*SCRIPT, *what, f"--coordination-file={self.ledger}", *words],
            env=outside | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: str, **variables: str) -> tuple[str, str]:
        """Return what it printed on stdout and on stderr."""
        out, err = self.start(*words, **variables).communicate(timeout=LONG)
        assert "Traceback" not in err
        return out.removesuffix("\n"), err.removesuffix("\n").removeprefix("nvidia-gpu-discovery: ")

    def waits(self) -> bool:
        return Path(f"{self.ledger}.queue").exists()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def eventually(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + LONG
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


# ---- the mask of whoever started the script -------------------------------------------------------


@pytest.mark.parametrize("coordination", [(), ("--enable-coordination-mode",)])
def test_inherited_mask_bounds_and_orders_what_is_handed_out(coordination: tuple[str, ...], script: Script) -> None:
    words = ("--simulate=4", *coordination)
    assert script.ask("2", *words, CUDA_VISIBLE_DEVICES="3,1") == ("3,1", "")
    out, err = script.ask("3", *words, CUDA_VISIBLE_DEVICES="3,1")
    assert (out, err) == ("", "3 wanted, only 2 of 4 are usable (GPU 0, 2: hidden by CUDA_VISIBLE_DEVICES=3,1)")


def test_mask_in_the_environment_is_unset_empty_or_minus_one(script: Script) -> None:
    assert script.ask("1", "--simulate=2") == ("0", "")
    for nothing in ("", "-1"):
        assert script.ask("1", "--simulate=2", CUDA_VISIBLE_DEVICES=nothing)[0] == ""


def test_mask_is_ignored_on_demand(script: Script) -> None:
    assert script.ask("1", "--simulate=4", "--ignore-mask", CUDA_VISIBLE_DEVICES="3") == ("0", "")


def test_listing_shows_what_the_mask_hides(script: Script) -> None:
    found = json.loads(script.ask("--list", "--simulate=2", "--format=json", CUDA_VISIBLE_DEVICES="1")[0])
    assert [device.get("unusable") for device in found] == ["hidden by CUDA_VISIBLE_DEVICES=1", None]


@pytest.mark.parametrize(
    ("form", "expected"),
    [("flink", "1"), ("spark", '{"name": "gpu", "addresses": ["1"]}')],
)
def test_relative_ordinals_count_inside_the_mask(form: str, expected: str, script: Script) -> None:
    words = ("1", "--simulate=4", "--enable-coordination-mode", "--relative")
    assert script.ask(*words, CUDA_VISIBLE_DEVICES="3,1")[0] == "0"
    assert script.ask(*words, f"--format={form}", CUDA_VISIBLE_DEVICES="3,1")[0] == expected
    assert [line.split()[0] for line in script.ledger.read_text().splitlines()] == ["3", "1"]


def test_relative_ordinal_stands_beside_the_index_for_programs(script: Script) -> None:
    out, _ = script.ask("1", "--simulate=4", "--relative", "--format=json", CUDA_VISIBLE_DEVICES="3,1")
    [device] = json.loads(out)
    assert (device["index"], device["ordinal"]) == ("3", "0")


def test_ordinals_are_refused_where_cuda_may_count_in_another_order(script: Script) -> None:
    out, err = script.ask("1", "--simulate=mixed", "--relative")
    assert (out, err[:47]) == ("", "--relative: CUDA's numbers are not known here, ")
    assert script.ask("1", "--simulate=mixed", "--relative", CUDA_DEVICE_ORDER="PCI_BUS_ID") == ("0", "")


def test_mask_that_cuda_may_read_otherwise_is_doubted(script: Script) -> None:
    out, err = script.ask("1", "--simulate=mixed", CUDA_VISIBLE_DEVICES="0")
    assert out == "0"
    assert err.startswith("warning: CUDA_DEVICE_ORDER is not PCI_BUS_ID")
    assert script.ask("1", "--simulate=mixed", CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID") == ("0", "")


def test_variables_agree_and_an_empty_grant_is_an_empty_mask(script: Script) -> None:
    script.describe(MIG_OFF)
    assert script.ask("2", "--format=env")[0].splitlines() == [
        "CUDA_DEVICE_ORDER=PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES=GPU-a,GPU-b",
        "NVIDIA_VISIBLE_DEVICES=GPU-a,GPU-b",
    ]
    assert script.ask("0", "--format=env")[0].splitlines()[1] == "CUDA_VISIBLE_DEVICES="


def test_jetson_is_named_by_its_index_in_a_mask(script: Script) -> None:
    script.describe("gpus: [{name: Orin (nvgpu), uuid: 54d0709b-558d-5a59-9c65-0c5fc14a21a4}]")
    assert "CUDA_VISIBLE_DEVICES=0\n" in script.ask("1", "--format=env")[0]


# ---- MIG ------------------------------------------------------------------------------------------


def test_mig_instance_is_granted_by_its_uuid_and_recorded_with_its_gpu(script: Script) -> None:
    script.describe(MIG_ON)
    assert script.ask("1", "--enable-coordination-mode") == ("MIG-1", "")
    token, _, details = script.ledger.read_text().split(" ", 2)
    recorded = json.loads(details)
    assert (token, recorded["uuid"], recorded["parent_uuid"], recorded["parent_token"]) == (
        "MIG-1", "MIG-1", "GPU-a", "0",
    )  # fmt: skip


def test_whole_gpu_and_its_instances_exclude_each_other(script: Script) -> None:
    script.describe(MIG_ON)
    assert script.ask("1", "--enable-coordination-mode", "--mig=1g.5gb")[0] == "MIG-1"
    script.describe(MIG_OFF)  # while the owner of the instance lives
    assert script.ask("1", "--enable-coordination-mode")[0] == "1"
    assert script.ask("1", "--enable-coordination-mode")[1].startswith("1 wanted, 0 of 2 free; held by pid")
    script.ledger.write_text("")
    assert script.ask("1", "--enable-coordination-mode")[0] == "0"
    script.describe(MIG_ON)
    assert script.ask("1", "--enable-coordination-mode", "--mig=1g.5gb")[0] == ""


def test_several_instances_for_one_process_are_doubted(script: Script) -> None:
    script.describe(MIG_ON)
    out, err = script.ask("2", "--mig=1g.5gb")
    assert out == "MIG-1,MIG-2"
    assert err == "warning: one process can use only one MIG instance: CUDA shows it the first"


def test_mask_of_several_instances_is_divided_among_processes(script: Script) -> None:
    script.describe(MIG_ON)
    words = ("1", "--enable-coordination-mode")
    granted = [script.ask(*words, CUDA_VISIBLE_DEVICES="MIG-2,MIG-1")[0] for _ in range(2)]
    assert granted == ["MIG-2", "MIG-1"]
    out, err = script.ask("1", "--relative", CUDA_VISIBLE_DEVICES="MIG-2,MIG-1")
    assert (out, "CUDA shows a process one MIG instance only" in err) == ("", True)
    assert script.ask("1", "--relative", CUDA_VISIBLE_DEVICES="MIG-2")[0] == "0"


def test_driver_claims_an_instance_and_gives_it_back(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    script.describe(MIG_ON)
    options = {"simulate": str(script.machine), "coordination-file": str(script.ledger), "mig": "1g.5gb"}
    with externalresource.claim("gpu", 2, options=options) as context:
        assert sorted(gpu.get_property("index") or "" for gpu in context.get_external_resource_infos("gpu")) == [
            "MIG-1",
            "MIG-2",
        ]
        assert context.environment()["CUDA_VISIBLE_DEVICES"] == "MIG-1,MIG-2"
        assert context.environment()["NVIDIA_VISIBLE_DEVICES"] == "MIG-1,MIG-2"
        assert len(script.ledger.read_text().splitlines()) == 2
    assert script.ledger.read_text() == ""


# ---- foreign use ----------------------------------------------------------------------------------


def test_device_in_use_is_granted_with_a_warning_or_refused_as_wanted(script: Script) -> None:
    script.describe(IN_USE)
    assert script.ask("1") == ("0", "")
    out, err = script.ask("1", "--foreign-use=warn", f"--log-file={script.folder}/log")
    assert (out, err) == ("0", "warning: GPU 0 is used by pid 4711 (2000 MiB)")
    assert (script.folder / "log").read_text().endswith("; GPU 0 is used by pid 4711 (2000 MiB)\n")
    out, err = script.ask("1", "--foreign-use=exclude", "--enable-coordination-mode")
    assert (out, err.partition(":")[0]) == ("", "1 wanted, 0 of 1 free ones are not in use (--foreign-use exclude)")


def test_device_in_use_is_waited_for(script: Script) -> None:
    script.describe(IN_USE)
    waiting = script.start("1", "--foreign-use=exclude", "--enable-coordination-mode", f"--wait={LONG}")
    assert eventually(script.waits)
    script.describe(NOT_IN_USE)
    out, err = waiting.communicate(timeout=LONG)
    assert (out, err) == ("0\n", "")


def test_who_waits_for_a_device_that_nobody_uses_is_not_overtaken_beside_one_in_use(script: Script) -> None:
    script.describe(BESIDE_ONE_IN_USE)
    with externalresource.claim(
        "gpu", 2, options={"simulate": str(script.machine), "coordination-file": str(script.ledger)}
    ):
        waiting = script.start("1", "--foreign-use=exclude", "--enable-coordination-mode", f"--wait={LONG}")
        assert eventually(script.waits)
        os.kill(waiting.pid, signal.SIGSTOP)
    late, other = script.ask("2", "--enable-coordination-mode")[1], script.ask("1", "--enable-coordination-mode")[0]
    os.kill(waiting.pid, signal.SIGCONT)
    assert late.startswith("2 wanted, 1 of 2 free; 1 waiting before")
    assert (other, waiting.communicate(timeout=LONG)) == ("0", ("1\n", ""))


def test_device_that_broke_while_it_was_waited_for_is_not_granted_until_it_works_again(script: Script) -> None:
    script.describe(NOT_IN_USE)
    with externalresource.claim(
        "gpu", 1, options={"simulate": str(script.machine), "coordination-file": str(script.ledger)}
    ):
        waiting = script.start("1", "--enable-coordination-mode", f"--wait={LONG}")
        impatient = script.start("1", "--enable-coordination-mode", "--wait=9")
        assert eventually(script.waits)
        script.describe(LOST)
        time.sleep(2.5)  # for two seconds an answer counts
    assert impatient.communicate(timeout=LONG)[1].startswith("nvidia-gpu-discovery: 1 wanted, 0 of 1 free")
    assert waiting.poll() is None
    script.describe(NOT_IN_USE)
    assert waiting.communicate(timeout=LONG) == ("0\n", "")


@pytest.mark.parametrize("amount", [1, 2])
def test_device_that_appears_goes_to_the_first_that_waits(script: Script, amount: int) -> None:
    script.describe("gpus: [{uuid: GPU-a}, {uuid: GPU-b}]")
    options = {"simulate": str(script.machine), "coordination-file": str(script.ledger)}
    with externalresource.claim("gpu", 2, options=options):
        waiting = script.start(str(amount), "--enable-coordination-mode", f"--wait={LONG}")
        assert eventually(script.waits)
        script.describe("gpus: [{uuid: GPU-a}, {uuid: GPU-b}, {uuid: GPU-c}, {uuid: GPU-d}]")
        assert waiting.communicate(timeout=LONG) == (["2\n", "2,3\n"][amount - 1], "")


def test_driver_that_does_not_answer_meanwhile_ends_no_wait(script: Script) -> None:
    script.describe(NOT_IN_USE)
    options = {"simulate": str(script.machine), "coordination-file": str(script.ledger)}
    with externalresource.claim("gpu", 1, options=options):
        waiting = script.start("1", "--enable-coordination-mode", f"--wait={LONG}", "--timeout=1")
        assert eventually(script.waits)
        script.describe(f"driver: hangs\n{NOT_IN_USE}")
        time.sleep(4)
        assert waiting.poll() is None
        script.describe(NOT_IN_USE)
    assert waiting.communicate(timeout=LONG) == ("0\n", "")


def test_device_that_gave_way_to_another_while_it_was_waited_for_is_not_granted(script: Script) -> None:
    script.describe(NOT_IN_USE)
    with externalresource.claim(
        "gpu", 1, options={"simulate": str(script.machine), "coordination-file": str(script.ledger)}
    ):
        waiting = script.start("1", "--enable-coordination-mode", "--wait=9")
        assert eventually(script.waits)
        script.describe(NOT_IN_USE.replace("GPU-a", "GPU-b"))
        time.sleep(2.5)  # for two seconds an answer counts
    out, err = waiting.communicate(timeout=LONG)
    assert (out, "(GPU 0: it is not there any more); waited 9 s" in err) == ("", True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_who_waits_also_while_the_driver_hangs(script: Script, number: signal.Signals) -> None:
    script.describe(IN_USE)
    before = signal.signal(number, lambda *_: None)  # else it is ignored by what a shell's background starts
    try:
        waiting = script.start("1", "--foreign-use=exclude", "--enable-coordination-mode", "--wait=99", "--timeout=40")
    finally:
        signal.signal(number, before)
    assert eventually(script.waits)
    script.describe(f"driver: hangs\n{IN_USE}")
    time.sleep(3.5)  # for two seconds the first answer counts
    waiting.send_signal(number)
    assert waiting.communicate(timeout=LONG) == ("", "")
    assert waiting.returncode == (130 if number == signal.SIGINT else -number)
    assert not script.waits()


class Asked:
    """A backend of no GPUs that notes how it was made, and the deadlines."""

    name = "asked"

    def __init__(self) -> None:
        self.topologies: list[bool] = []
        self.deadlines: list[float] = []

    def create(self, _name: str, _machine: str | None, *, topology: bool, processes: bool) -> "Asked":
        assert processes
        self.topologies.append(topology)
        return self

    def start(self) -> None: ...

    def devices(self, deadline: float) -> list[Device]:
        self.deadlines.append(deadline)
        return []

    def links(self, deadline: float) -> Links:
        return {}


def test_driver_is_asked_again_only_for_what_matters_and_within_what_is_left(tmp_path: Path) -> None:
    asked = Asked()
    words = ["2", "--wait=9", "--foreign-use=exclude", f"--coordination-file={tmp_path}/gpus"]
    question = Question(Options(words, {}), asked.create)
    host = question.host(4.0)
    question.look_again(host, 5.0)
    host.is_outdated = True
    question.look_again(host, 5.0)
    assert (asked.deadlines, asked.topologies) == ([4.0, 5.0], [True, False])
    assert not host.is_outdated


def test_listing_says_what_is_in_use(script: Script) -> None:
    script.describe(IN_USE)
    [device] = json.loads(script.ask("--list", "--format=json", "--foreign-use=warn")[0])
    assert device["in_use"] == "used by pid 4711 (2000 MiB)"


# ---- selection and deadlines ----------------------------------------------------------------------


def test_several_are_the_best_connected_ones_by_default(script: Script) -> None:
    words = ("--simulate=dgx-1", "--enable-coordination-mode")
    assert script.ask("1", *words)[0] == "0"
    assert script.ask("2", *words, "--policy=first")[0] == "1,2"
    assert script.ask("4", *words)[0] == "4,5,6,7"  # not 3, whose links to these go over the processors


def test_driver_that_is_slow_is_served_by_a_longer_deadline(script: Script) -> None:
    script.describe("gpus: [{}]\ndriver: {slow: 1}")
    assert "did not answer within" in script.ask("1", "--timeout=0.3")[1]
    assert script.ask("1", "--timeout=30") == ("0", "")
    options = {"simulate": str(script.machine), "coordination-file": str(script.ledger)}
    with pytest.raises(DiscoveryError, match="did not answer within"):
        externalresource.claim("gpu", options=options | {"discovery-script.timeout": "0.5"})
    with externalresource.claim("gpu", options=options | {"discovery-script.timeout": "30"}):
        pass
