"""What is asked for: by a configuration, or by a call without one; with the GPU plugin also what then is claimed."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import externalresource
from externalresource.context import RuntimeContext, claim, runtime_context
from externalresource.coordination import Coordination
from externalresource.drivers.loading import create_driver
from externalresource.errors import (
    ConfigurationError,
    CoordinationError,
    ExternalResourceError,
    NotEnoughDevicesError,
    PluginError,
)
from tests.support.fpga import FACTORY, Factory
from tests.support.processes import in_child


@pytest.fixture(autouse=True)
def seen() -> Iterator[list[dict[str, str]]]:
    Factory.seen.clear()
    yield Factory.seen
    Factory.seen.clear()


def configuration(**resources: Mapping[str, object]) -> dict[str, object]:
    return {"external-resources": list(resources), "external-resource": resources}


def fpga(amount: int = 1, **param: str) -> dict[str, object]:
    return {"amount": amount, "driver-factory.class": FACTORY, "param": param}


# From a configuration


def test_each_resource_gets_its_own_options(seen: list[dict[str, str]]) -> None:
    config = configuration(fpga=fpga(1, board="a", speed="3"), other=fpga(2))
    with runtime_context(config) as context:
        assert len(context.get_external_resource_infos("fpga")) == 1
        assert len(context.get_external_resource_infos("other")) == 2
    assert seen == [{"board": "a", "speed": "3"}, {}]


def test_overrides_win(seen: list[dict[str, str]]) -> None:
    overrides = {"external-resource.fpga.amount": "3", "external-resource.fpga.param.board": "b"}
    context = runtime_context(configuration(fpga=fpga(1, board="a")), overrides=overrides)
    assert len(context.get_external_resource_infos("fpga")) == 3
    assert seen == [{"board": "b"}]


def test_resource_without_a_driver_has_no_infos() -> None:
    context = runtime_context(configuration(fpga={"amount": 1}, other=fpga()))
    with pytest.raises(ConfigurationError, match=r"'fpga' \(it has: other\)"):
        context.get_external_resource_infos("fpga")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (configuration(fpga={"amount": 0}), ConfigurationError),
        (configuration(fpga={"amount": 1, "driver-factory.class": "missing"}), PluginError),
        (configuration(fpga=fpga(1, fail="yes")), NotEnoughDevicesError),
        (configuration(fpga=fpga(1), other={"amount": 1, "driver-factory.class": "missing:"}), PluginError),
    ],
    ids=["configuration", "plugin", "devices", "second plugin"],
)
def test_every_error_is_raised_at_once(config: Mapping[str, object], kind: type[ExternalResourceError]) -> None:
    with pytest.raises(kind):
        runtime_context(config)


def test_lenient_leaves_out_a_resource_without_its_plugin(caplog: pytest.LogCaptureFixture) -> None:
    config = configuration(fpga={"amount": 1, "driver-factory.class": "missing"}, other=fpga(1, fail="1"), good=fpga())
    context = runtime_context(config, lenient=True)
    assert context.get_external_resource_infos("fpga") == frozenset()
    assert context.get_external_resource_infos("other") == frozenset()
    assert len(context.get_external_resource_infos("good")) == 1
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "resource 'fpga' is left out",
        "resource 'other' is left out",
    ]


# Without a configuration


def test_claim_is_coordinated_and_of_one_device_by_default(seen: list[dict[str, str]]) -> None:
    with claim("fpga", driver_factory=FACTORY) as context:
        assert len(context.get_external_resource_infos("fpga")) == 1
    assert seen == [{"enable-coordination-mode": "true"}]


def test_options_of_a_claim_are_the_drivers_and_win(seen: list[dict[str, str]]) -> None:
    claim("fpga", 2, driver_factory=FACTORY, options={"enable-coordination-mode": "false", "board": "a"}).close()
    assert seen == [{"enable-coordination-mode": "false", "board": "a"}]


def test_claim_takes_the_plugin_of_the_resources_name() -> None:
    with pytest.raises(PluginError, match=r"no installed plugin is called 'fgpa'"):
        claim("fgpa")


@pytest.mark.parametrize("amount", [0, -1])
def test_amount_of_a_claim_must_be_positive(amount: int, seen: list[dict[str, str]]) -> None:
    with pytest.raises(ConfigurationError, match=f"^the amount of 'fpga' must be a positive integer, not {amount}$"):
        claim("fpga", amount, driver_factory=FACTORY)
    assert seen == []


# With the GPU plugin, and the coordination file


@pytest.fixture
def ledger(tmp_path: Any) -> str:
    return str(tmp_path / "gpus")


def simulated(ledger: str, amount: int, **more: str) -> dict[str, object]:
    param = {"simulate": "4", "coordination-file": ledger, "enable-coordination-mode": "true"} | more
    return {"amount": amount, "driver-factory.class": "gpu", "param": param}


def holders(ledger: str) -> list[int]:
    return [claim.owner.process.pid for claim in Coordination(ledger, "gpu").held()]


def test_devices_of_a_with_block_belong_to_this_process_until_its_end(ledger: str) -> None:
    with externalresource.runtime_context(configuration(gpu=simulated(ledger, 3))) as context:
        assert len(context.get_external_resource_infos("gpu")) == 3
        assert holders(ledger) == [os.getpid()] * 3
    assert holders(ledger) == []


def test_first_resources_devices_are_free_again_when_the_second_fails(ledger: str) -> None:
    with pytest.raises(ExternalResourceError, match="2 wanted, 1 of 4 free"):
        runtime_context(configuration(one=simulated(ledger, 3), two=simulated(ledger, 2)))
    assert holders(ledger) == []


def test_fork_gives_nothing_back(ledger: str) -> None:
    with claim("gpu", 2, options={"simulate": "4", "coordination-file": ledger}) as context:
        in_child(context.close)
        assert holders(ledger) == [os.getpid()] * 2
        assert len(context.get_external_resource_infos("gpu")) == 2


def test_context_gives_back_only_what_it_was_given(ledger: str) -> None:
    options = {"simulate": "4", "coordination-file": ledger}
    with claim("gpu", options=options) as outer:
        with claim("gpu", 2, options=options):
            assert len(holders(ledger)) == 3
        assert len(holders(ledger)) == 1
        (info,) = outer.get_external_resource_infos("gpu")
        (held,) = Coordination(ledger, "gpu").held()
        assert held.uuid == info.get_property("uuid")


def test_device_that_could_not_be_given_back_is_given_back_by_closing_again(ledger: str) -> None:
    context = claim("gpu", options={"simulate": "4", "coordination-file": ledger})
    lock = Path(f"{ledger}.lock").rename(f"{ledger}.kept")
    Path(f"{ledger}.lock").mkdir()  # which nobody can lock as a file
    with pytest.raises(CoordinationError, match=r"^the devices of 'gpu' are not given back: "):
        context.close()
    Path(f"{ledger}.lock").rmdir()
    lock.rename(f"{ledger}.lock")
    assert holders(ledger) == [os.getpid()]
    context.close()
    assert holders(ledger) == []


def test_options_of_a_claim_are_values_as_in_a_configuration(tmp_path: Path) -> None:
    options = {"simulate": 2, "coordination-file": tmp_path / "gpus", "enable-coordination-mode": True, "wait": 0.5}
    with externalresource.claim("gpu", options=options) as context:
        assert len(context.get_external_resource_infos("gpu")) == 1
    with pytest.raises(ConfigurationError, match=r"option 'name' must be one value, not \[\]"):
        externalresource.claim("gpu", options={"name": []})


def test_error_says_which_of_several_resources_it_is_of(tmp_path: Path) -> None:
    options = {"coordination-file": str(tmp_path / "gpus"), "simulate": "1"}
    drivers = {name: (create_driver("gpu", options), amount) for name, amount in (("first", 1), ("second", 2))}
    with pytest.raises(ExternalResourceError, match=r"^resource 'second': 2 wanted, this host has 1"):
        RuntimeContext(drivers)


def test_amount_that_is_no_integer_is_refused_in_words() -> None:
    with pytest.raises(ConfigurationError, match="the amount of 'gpu' must be a positive integer, not '1'"):
        externalresource.claim("gpu", "1")  # type: ignore[arg-type]
