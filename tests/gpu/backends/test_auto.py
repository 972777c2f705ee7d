"""NVML, and where it does not answer, nvidia-smi."""

import time
from pathlib import Path

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import create
from externalresource_gpu.backends.auto import Auto
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device
from tests.support.backends import message, soon
from tests.support.nvml_stub import Stub, device


class Fake:
    def __init__(self, name: str, answer: list[Device] | str) -> None:
        self.name, self.answer, self.started, self.asked = name, answer, False, False

    def start(self) -> None:
        self.started = True

    def devices(self, deadline: float) -> list[Device]:
        self.asked = True
        if isinstance(self.answer, str):
            raise DiscoveryError(self.answer)
        return self.answer

    def links(self, deadline: float) -> Links:
        return {(0, 1): self.name}


def test_auto_asks_the_first_alone_where_it_answers() -> None:
    first, second = Fake("nvml", [Device(0)]), Fake("nvidia-smi", [])
    auto = Auto([first, second])
    auto.start()
    assert (first.started, second.started, auto.name) == (True, False, "auto")
    assert auto.devices(soon()) == [Device(0)]
    assert (second.asked, auto.name) == (False, "nvml")


def test_auto_takes_no_gpu_for_an_answer() -> None:
    assert Auto([Fake("nvml", []), Fake("nvidia-smi", "not asked")]).devices(soon()) == []


def test_auto_asks_the_second_where_the_first_fails() -> None:
    auto = Auto([Fake("nvml", "NVML failed"), Fake("nvidia-smi", [Device(0)])])
    assert auto.devices(soon()) == [Device(0)]
    assert auto.name == "nvidia-smi"


def test_auto_knows_the_links_of_whoever_answered() -> None:
    failing, answering = Fake("nvml", "NVML failed"), Fake("nvidia-smi", [Device(0)])
    auto = Auto([failing, answering])
    assert auto.links(soon()) == {}
    auto.devices(soon())
    assert auto.links(soon()) == {(0, 1): "nvidia-smi"}
    answering.answer = "nvidia-smi failed"
    with pytest.raises(DiscoveryError):
        auto.devices(soon())
    assert (auto.links(soon()), auto.name) == ({}, "auto")


@pytest.mark.parametrize("name", ["auto", "nvml"])
def test_what_is_asked_for_is_asked_of_nvml(stub: Stub, name: str) -> None:
    stub.behave("busy", count=2)
    backend = create(name, topology=True, processes=True)
    assert [bool(gpu.processes) for gpu in backend.devices(soon())] == [True, True]
    assert backend.links(soon()) == {(0, 1): "PIX"}


def test_auto_tells_what_each_said_where_none_answers() -> None:
    with pytest.raises(DiscoveryError) as error:
        Auto([Fake("nvml", "NVML is ill"), Fake("nvidia-smi", "nvidia-smi was not found")]).devices(soon())
    assert message(error) == "no GPU can be listed: NVML is ill; nvidia-smi was not found"


def test_auto_asks_nobody_after_the_deadline() -> None:
    second = Fake("nvidia-smi", [Device(0)])
    with pytest.raises(DiscoveryError, match="nvidia-smi was not asked, as no time was left"):
        Auto([Fake("nvml", "NVML did not answer"), second]).devices(time.monotonic())
    assert not second.asked


def test_auto_is_nvml_then_nvidia_smi(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.behave("driver")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DiscoveryError, match=r"NVML failed: .*; nvidia-smi was not found on PATH"):
        create("auto").devices(soon())
    stub.behave()
    auto = create("auto")
    auto.start()
    assert auto.devices(soon()) == [device(0), device(1)]
    assert auto.name == "nvml"


@pytest.mark.parametrize(
    ("word", "status", "said", "remedy"),
    [
        ("permission", 4, "Failed to initialize NVML: Insufficient Permissions", "who may open /dev/nvidia*"),
        ("driver", 9, "NVIDIA-SMI has failed because it couldn't communicate", "modprobe nvidia"),
        ("mismatch", 18, "Failed to initialize NVML: Driver/library version mismatch", "reload the nvidia kernel"),
        ("unknown", 255, "Failed to initialize NVML: Unknown Error", "has to be recreated"),
    ],
)
def test_auto_tells_of_both_what_they_said_and_what_to_do(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, status: int, said: str, remedy: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "{said}"\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    stub.behave(word)
    with pytest.raises(DiscoveryError) as error:
        create("auto").devices(soon())
    assert message(error).startswith("no GPU can be listed: NVML failed: nvmlInit: ")
    assert f"; nvidia-smi failed (exit {status}): {said}" in message(error)
    assert message(error).count(remedy) == 2
