"""The tests that every driver passes: its author inherits them, and pytest runs them. See docs/write-a-driver.md."""

import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping, Set as AbstractSet
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import pytest

from externalresource.drivers import (
    ExternalResourceDriver,
    NotOfferedError,
    create_driver,
    properties,
)
from externalresource.errors import ConfigurationError, DiscoveryError, ExternalResourceError, PluginError
from externalresource.testing.process import Process, Properties

T = TypeVar("T")

# What the framework sets for every driver, and no driver may take for right.
_WRONG = {"enable-coordination-mode": "perhaps", "timeout": "soon", "wait": "soon"}
_MOMENT = 0.3  # seconds, in which a process that does not wait is refused


class Bench:
    """One test's drivers and processes, which share a coordination file and end with the test."""

    def __init__(self, factory: str, folder: Path, patience: float) -> None:
        self._factory = factory
        self._patience = patience
        self._common = {"enable-coordination-mode": "true", "coordination-file": str(folder / "coordination")}
        self.folder = folder / "machine"
        self.folder.mkdir()
        self.ending = ExitStack()

    def driver(self, options: Mapping[str, str], **more: str) -> ExternalResourceDriver:
        """Return a driver in this process."""
        driver = create_driver(self._factory, {**self._common, **options, **_dashed(more)})
        self.ending.callback(driver.close)
        return driver

    def process(self, options: Mapping[str, str], **more: str) -> Process:
        """Return a process of its own with such a driver."""
        process = Process(self._factory, {**self._common, **options, **_dashed(more)}, self._patience)
        self.ending.callback(process.close)
        return process


class DriverConformance:
    """Inherit it, say how the driver is called, and make machines for it: the tests come along."""

    #: The installed plugin's name, or an import path: `package.module:name`.
    factory: ClassVar[str]
    #: Of the driver's own options, a value for each that must be refused.
    wrong_options: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: Seconds after which a driver that does not answer is taken for one that never will.
    patience: ClassVar[float] = 60.0

    def machine(self, folder: Path, amount: int) -> Mapping[str, str]:
        """Return options by which the driver sees exactly `amount` devices, all usable; `folder` is empty and yours."""
        raise NotImplementedError

    def unusable(self, folder: Path) -> Mapping[str, str] | None:
        """Return options by which some of the devices, not all, must not be handed out."""
        del folder
        return None

    def failing(self, folder: Path) -> Mapping[str, str] | None:
        """Return options by which the driver cannot tell what is here."""
        del folder
        return None

    def slow(self, folder: Path) -> Mapping[str, str] | None:
        """Return options by which the enumeration takes minutes."""
        del folder
        return None

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        bench = Bench(self.factory, tmp_path, self.patience)
        with bench.ending:
            yield bench

    @pytest.mark.parametrize("amount", [1, 2, 3])
    def test_exactly_as_many_devices_are_handed_out_as_asked_for(self, bench: Bench, amount: int) -> None:
        infos = bench.driver(self.machine(bench.folder, 3)).retrieve_resource_info(amount)
        _hold(isinstance(infos, AbstractSet), f"the answer is a {type(infos).__name__}, not a set of infos")
        _hold(len(infos) == amount, f"{amount} were asked for, and {len(infos)} infos returned")
        names = _names(infos)
        _hold(len({*names}) == amount, f"{amount} were asked for, and these returned: {names}")

    @pytest.mark.parametrize("amount", [0, -1])
    def test_amount_below_one_is_refused(self, bench: Bench, amount: int) -> None:
        driver = bench.driver(self.machine(bench.folder, 1))
        _refused(ConfigurationError, f"an amount of {amount}", _retrieval(driver, amount))

    def test_more_devices_than_there_are_is_refused(self, bench: Bench) -> None:
        driver = bench.driver(self.machine(bench.folder, 2))
        _refused(ExternalResourceError, "3 devices of 2", _retrieval(driver, 3))

    def test_refused_process_holds_nothing(self, bench: Bench) -> None:
        driver = bench.driver(self.machine(bench.folder, 2))
        driver.retrieve_resource_info(1)
        _refused(ExternalResourceError, "2 devices of which 1 is free", _retrieval(driver, 2))
        _granted(1, "the one that was free is held by who was refused 2", _retrieval(driver, 1))

    def test_two_processes_never_have_the_same_device(self, bench: Bench) -> None:
        options = self.machine(bench.folder, 3)
        here, there = bench.driver(options), bench.process(options)
        there.begin("retrieve", 1)
        (one,), (other,) = _names(here.retrieve_resource_info(1)), map(_name, there.answer())
        _hold(one != other, f"two processes asked at once, and both were given {one}")
        _refused(ExternalResourceError, "2 devices of which 1 is free", lambda: there.retrieve(2))

    def test_who_asks_again_gets_further_devices(self, bench: Bench) -> None:
        driver = bench.driver(self.machine(bench.folder, 2))
        first, second = (_names(driver.retrieve_resource_info(1)) for _ in range(2))
        _hold(first != second, f"a process that asked twice was given {first} twice")

    def test_death_of_the_owner_frees_its_devices(self, bench: Bench) -> None:
        options = self.machine(bench.folder, 2)
        owner = bench.process(options)
        owner.retrieve(2)
        owner.kill()
        _granted(2, "the devices of a killed process stay held", _retrieval(bench.driver(options), 2))

    def test_close_gives_back(self, bench: Bench) -> None:
        options = self.machine(bench.folder, 2)
        owner = bench.process(options)
        owner.retrieve(2)
        owner.ask("close")
        _granted(2, "the devices stay held after close()", _retrieval(bench.driver(options), 2))

    def test_close_is_harmless_when_called_twice(self, bench: Bench) -> None:
        options = self.machine(bench.folder, 2)
        owner, other = bench.process(options), bench.driver(options)
        owner.retrieve(1)
        owner.ask("close")
        other.retrieve_resource_info(1)
        owner.ask("close")
        _refused(ExternalResourceError, "a device that one holds, when another closes twice", _retrieval(other, 2))

    def test_exit_of_a_fork_gives_nothing_back(self, bench: Bench) -> None:
        owner = bench.process(self.machine(bench.folder, 1))
        owner.retrieve(1)
        status = owner.ask("fork")
        _hold(status == 0, f"close() in a forked child ended it with {status}")
        _refused(ExternalResourceError, "a device whose owner's fork ended", lambda: owner.retrieve(1))

    def test_process_that_waits_gets_what_another_gives_back(self, bench: Bench) -> None:
        options = self.machine(bench.folder, 1)
        owner, waiting = bench.process(options), bench.process(options, wait=f"{self.patience:g}")
        owner.retrieve(1)
        waiting.ask("close")  # it is there now
        waiting.begin("retrieve", 1)
        waiting.busy(_MOMENT)
        owner.ask("close")
        _granted(1, "a process that waited was refused what was given back", waiting.answer)

    def test_holders_are_shown(self, bench: Bench) -> None:
        options = self.machine(bench.folder, 2)
        shown = bench.driver(options)
        _offered(shown.held)
        owner = bench.process(options)
        names = {_name(info) for info in owner.retrieve(1)}
        held = {(each.process.pid, claim.uuid or claim.token) for claim in shown.held() for each in claim.holders}
        _hold(held == {(owner.pid, name) for name in names}, f"{owner.pid} holds {names}, and held() shows {held}")

    def test_listing_agrees_with_what_is_handed_out(self, bench: Bench) -> None:
        driver = bench.driver(self.machine(bench.folder, 2))
        listed = _names(_offered(driver.devices))
        handed_out = _names(driver.retrieve_resource_info(2))
        _hold(listed == handed_out, f"devices() shows {listed}, handed out are {handed_out}")

    def test_unusable_device_is_shown_and_not_handed_out(self, bench: Bench) -> None:
        driver = bench.driver(_given(self.unusable(bench.folder), "unusable"))
        listed = list(_offered(driver.devices))
        usable = _names([info for info in listed if info.get_property("unusable") is None])
        _hold(0 < len(usable) < len(listed), f"of {len(listed)} devices {len(usable)} have no property `unusable`")
        handed_out = _names(driver.retrieve_resource_info(len(usable)))
        _hold(handed_out == usable, f"usable are {usable}, handed out are {handed_out}")
        _refused(ExternalResourceError, "an unusable device", _retrieval(driver, 1))

    def test_unknown_option_is_refused(self, bench: Bench) -> None:
        options = {**self.machine(bench.folder, 1), "no-such-option": "1"}
        _refused(ConfigurationError, "the option 'no-such-option'", lambda: bench.driver(options))

    def test_options_of_the_framework_are_understood(self, bench: Bench) -> None:
        options = {"timeout": "5", "wait": "1"}
        _granted(1, "", lambda: bench.driver({**self.machine(bench.folder, 1), **options}).retrieve_resource_info(1))

    @pytest.mark.parametrize("name", _WRONG)
    def test_wrong_value_of_the_frameworks_is_refused(self, bench: Bench, name: str) -> None:
        options = {**self.machine(bench.folder, 1), name: _WRONG[name]}
        _refused(ConfigurationError, f"the value {_WRONG[name]!r} of {name!r}", lambda: bench.driver(options))

    def test_wrong_value_of_its_own_is_refused(self, bench: Bench) -> None:
        if not self.wrong_options:
            pytest.skip("wrong_options is empty: no value of the driver's own options is known to be wrong")
        right = self.machine(bench.folder, 1)
        for name, value in self.wrong_options.items():
            wrong = {**right, name: value}
            _refused(ConfigurationError, f"the value {value!r} of {name!r}", partial(bench.driver, wrong))

    def test_enumeration_that_fails_is_an_error(self, bench: Bench) -> None:
        driver = bench.driver(_given(self.failing(bench.folder), "failing"))
        _refused(DiscoveryError, "a device where the enumeration fails", _retrieval(driver, 1))
        with suppress(NotOfferedError):
            _refused(DiscoveryError, "a listing where the enumeration fails", driver.devices)

    def test_enumeration_that_takes_too_long_is_an_error(self, bench: Bench) -> None:
        process = bench.process(_given(self.slow(bench.folder), "slow"), timeout=f"{_MOMENT:g}")
        _refused(DiscoveryError, "an enumeration that takes minutes", lambda: process.retrieve(1))

    def test_infos_have_the_properties_that_they_name(self, bench: Bench) -> None:
        for info in bench.driver(self.machine(bench.folder, 2)).retrieve_resource_info(2):
            known = {key: info.get_property(key) for key in info.get_keys()}
            wrong = {key: value for key, value in known.items() if not isinstance(value, str)}
            _hold(not wrong, f"get_keys() names what get_property() has no text for: {wrong}")
            _hold("index" in known, f"an info has no property `index`, only {sorted(known)}")

    def test_property_that_a_device_has_not_is_none(self, bench: Bench) -> None:
        (info,) = bench.driver(self.machine(bench.folder, 1)).retrieve_resource_info(1)
        value: object
        try:
            value = info.get_property("no-such-property")
        except LookupError as error:
            value = error
        _hold(value is None, f"get_property('no-such-property') is {value!r}, not None")

    def test_infos_of_one_device_are_equal_and_hash_alike(self, bench: Bench) -> None:
        options = {**self.machine(bench.folder, 1), "enable-coordination-mode": "false"}
        one, same = (info for _ in range(2) for info in bench.driver(options).retrieve_resource_info(1))
        _hold(isinstance(one, Hashable), "an info cannot be hashed: no set can hold it")
        _hold(one == same, f"two infos of one device are not equal: {one!r} and {same!r}")
        _hold(hash(one) == hash(same), f"two equal infos have different hashes: {one!r}")

    def test_infos_of_two_devices_differ(self, bench: Bench) -> None:
        one, other = bench.driver(self.machine(bench.folder, 2)).retrieve_resource_info(2)
        _hold(one != other, f"infos of two devices are equal: {one!r} and {other!r}")
        text: object = _name(properties(one))
        _hold(one != text, f"the info {one!r} is equal to a text")

    def test_infos_outlast_pickling(self, bench: Bench) -> None:
        (info,) = bench.driver(self.machine(bench.folder, 1)).retrieve_resource_info(1)
        try:
            copy = pickle.loads(pickle.dumps(info))  # noqa: S301 - our own
        except Exception as error:  # noqa: BLE001 - the classes of what cannot be pickled are many
            pytest.fail(f"{info!r} cannot be pickled: {error}", pytrace=False)
        _hold(properties(copy) == properties(info), f"{info!r} is another one after pickling: {copy!r}")

    def test_environment_tells_devices_apart(self, bench: Bench) -> None:
        driver = bench.driver(self.machine(bench.folder, 2))
        one, other = driver.retrieve_resource_info(2)
        try:
            variables = [dict(_offered(partial(driver.environment, infos))) for infos in ([one], [other], [one, other])]
        except PluginError as error:
            pytest.skip(f"the devices have no variables: {error}")
        texts = [text for found in variables for pair in found.items() for text in pair]
        _hold(all(isinstance(text, str) for text in texts), f"not all variables are texts: {variables}")
        alike = [found for found in variables if variables.count(found) > 1]
        _hold(not alike, f"one device, another and both are to be told apart, and not by {alike}")

    def test_nothing_is_printed_on_stdout(self, bench: Bench) -> None:
        process = bench.process(self.machine(bench.folder, 1))
        process.ask("all")
        printed = process.output()
        _hold(not printed, f"the driver printed on stdout, where only answers belong: {printed[:200]!r}")


def _hold(rule: bool, otherwise: str) -> None:  # noqa: FBT001 - the rule itself
    if not rule:
        pytest.fail(otherwise, pytrace=False)


def _refused(kind: type[ExternalResourceError], what: str, act: Callable[[], object]) -> None:
    """Hold that it raises an error of that kind, in one line."""
    raised: Exception | None = None
    try:
        found = f"and the answer is {act()!r}"
    except Exception as error:  # noqa: BLE001 - that it is of another kind is the finding
        found, raised = f"not by {type(error).__name__}: {error}", error
    if not isinstance(raised, kind):
        pytest.fail(f"{what} is to be refused by {kind.__name__}, {found}", pytrace=False)
    _hold(len(str(raised).splitlines()) == 1, f"{what}: the error is not one line: {str(raised)!r}")


def _granted(amount: int, otherwise: str, act: Callable[[], Any]) -> None:
    try:
        infos = act()
    except ExternalResourceError as error:
        pytest.fail(f"{otherwise}: {error}".removeprefix(": "), pytrace=False)
    _hold(len(infos) == amount, f"{amount} devices were asked for, and {len(infos)} returned")


def _retrieval(driver: Any, amount: int) -> Callable[[], Any]:
    return partial(driver.retrieve_resource_info, amount)


def _given(options: Mapping[str, str] | None, hook: str) -> Mapping[str, str]:
    if options is None:
        pytest.skip(f"the class of the tests has no {hook}(folder) that makes such a machine")
    return options


def _offered(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except NotOfferedError as error:
        pytest.skip(str(error).replace("it has", "the driver has", 1))


def _names(infos: Any) -> list[str]:
    return sorted(_name(properties(info)) for info in infos)


def _name(info: Properties) -> str:
    return info.get("uuid") or info.get("index") or ""


def _dashed(options: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in options.items()}
