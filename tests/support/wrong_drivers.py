"""Right drivers, and wrong ones: each has one fault, and names the test of the conformance suite that tells of it."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from externalresource.api import Device, ExternalResourceInfo, Grants, driver, hookimpl
from externalresource.coordination import Claim, Coordination, lock as locks
from externalresource.errors import ConfigurationError, DiscoveryError, ExternalResourceError, NotEnoughDevicesError


@dataclass(frozen=True)
class Options:
    root: str = "/nowhere"
    pace: int = 1
    fails: bool = False
    hangs: bool = False

    def __post_init__(self) -> None:
        if self.pace < 1:
            raise ValueError(f"option 'pace' must be positive, not {self.pace}")


@driver("widget", Options)
def right(options: Options) -> Iterator[Device]:
    if options.fails:
        raise DiscoveryError("the bus does not answer")
    if options.hangs:
        time.sleep(1000)
    for path in sorted(Path(options.root).iterdir()):
        unusable = "broken" if path.suffix == ".broken" else None
        yield Device(path.name, f"widget-{path.name}", unusable=unusable, environment={"WIDGETS": path.name})


class Wrong:
    """A right driver but for what a subclass changes."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = dict(options)
        self.right = right.create_external_resource_driver(self.options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.right, name)

    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        return self.right.retrieve_resource_info(amount)

    def coordinate(self, coordination: Coordination) -> None:
        self.right._grants = Grants(coordination)


#: By the driver's name: the test that fails.
CAUGHT_BY: dict[str, str] = {}


class Factory:
    def __init__(self, kind: Callable[[Mapping[str, str]], Any]) -> None:
        self.kind = kind

    @hookimpl
    def create_external_resource_driver(self, options: Mapping[str, str]) -> Any:
        return self.kind(options)


def caught_by(test: str) -> Callable[[type[Wrong]], Factory]:
    def factory(kind: type[Wrong]) -> Factory:
        CAUGHT_BY[kind.__name__] = test
        return Factory(kind)

    return factory


class Bare:
    """A right driver that has no more than it must have."""

    def __init__(self, options: Mapping[str, str]) -> None:
        made = right.create_external_resource_driver(options)
        self.retrieve_resource_info, self.close = made.retrieve_resource_info, made.close


bare = Factory(Bare)


@caught_by("test_exactly_as_many_devices_are_handed_out_as_asked_for")
class TooFew(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        infos = super().retrieve_resource_info(amount)
        return {*list(infos)[:2]} if amount == 3 else infos


@caught_by("test_exactly_as_many_devices_are_handed_out_as_asked_for")
class AList(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        return list(super().retrieve_resource_info(amount))


@caught_by("test_amount_below_one_is_refused")
class NothingForNothing(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        return super().retrieve_resource_info(amount) if amount > 0 else set()


@caught_by("test_more_devices_than_there_are_is_refused")
class WhatThereIs(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        return super().retrieve_resource_info(min(amount, len(self.right.devices())))


@caught_by("test_more_devices_than_there_are_is_refused")
class ErrorOfItsOwn(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        if amount > len(self.right.devices()):
            raise IndexError(amount)
        return super().retrieve_resource_info(amount)


@caught_by("test_more_devices_than_there_are_is_refused")
class LongStory(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        if amount > len(self.right.devices()):
            raise NotEnoughDevicesError(f"Sorry!\n{amount} are too many")
        return super().retrieve_resource_info(amount)


@caught_by("test_refused_process_holds_nothing")
class OneByOne(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        if amount < 1:
            return super().retrieve_resource_info(amount)
        return {info for _ in range(amount) for info in self.right.retrieve_resource_info(1)}


@caught_by("test_two_processes_never_have_the_same_device")
class FileOfItsOwn(Wrong):
    """Keeps one coordination file for each process, and looks into those of the others only to show or to wait."""

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self.folder = Path(options["coordination-file"]).parent
        if "wait" not in options:
            self.coordinate(Coordination(f"{options['coordination-file']}-{os.getpid()}", "widget"))

    def held(self) -> list[Claim]:
        files = [path for path in self.folder.glob("coordination-*") if path.suffix == ""]
        return [claim for path in files for claim in Coordination(str(path), "widget").held()]


class _Slow(Coordination):
    def _write(self, locked: locks.Locked, before: Sequence[Claim], after: Sequence[Claim]) -> None:
        time.sleep(1.5 if len(after) > len(before) else 0)  # on a busy machine, too, another one comes meanwhile
        super()._write(locked, before, after)


@caught_by("test_two_processes_never_have_the_same_device")
class NoLock(Wrong):
    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self.coordinate(_Slow(self.options["coordination-file"], "widget", lock=lambda _descriptor: True))


@caught_by("test_who_asks_again_gets_further_devices")
class SameAgain(Wrong):
    given: Collection[ExternalResourceInfo] = ()

    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        infos = super().retrieve_resource_info(amount)
        self.given = self.given or infos
        return self.given if amount == 1 and len(self.given) == 1 else infos


@caught_by("test_death_of_the_owner_frees_its_devices")
class NobodyDies(Wrong):
    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self.coordinate(Coordination(self.options["coordination-file"], "widget", gone=lambda owner, here: False))


@caught_by("test_close_gives_back")
class NeverGivesBack(Wrong):
    """Notices only the end of a process, or that somebody waits."""

    def close(self) -> None:
        if Path(self.options["coordination-file"] + ".queue").exists():
            self.right.close()


@caught_by("test_close_is_harmless_when_called_twice")
class OnlyOnce(Wrong):
    def close(self) -> None:
        if self.__dict__.pop("options", None) is None:
            raise OSError("closed")
        self.right.close()


@caught_by("test_close_is_harmless_when_called_twice")
class ClosesAll(Wrong):
    """Gives back in the name of all, at the second time."""

    closed = 0

    def close(self) -> None:
        self.right.close()
        self.closed += 1
        if self.closed > 1:
            self.right.drop(lambda claim, holder: True)


@caught_by("test_exit_of_a_fork_gives_nothing_back")
class ForkGivesBack(Wrong):
    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self.pid = os.getpid()

    def close(self) -> None:
        self.right.drop(lambda claim, holder: holder.process.pid == self.pid)


@caught_by("test_process_that_waits_gets_what_another_gives_back")
class DoesNotWait(Wrong):
    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__({**options, "wait": "0"} if options.get("wait") != "soon" else options)


@caught_by("test_holders_are_shown")
class ShowsNoHolder(Wrong):
    def held(self) -> list[Claim]:
        return []


@caught_by("test_listing_agrees_with_what_is_handed_out")
class ShowsLess(Wrong):
    def devices(self) -> list[ExternalResourceInfo]:
        found = self.right.devices()
        return found[:1] if all(info.get_property("unusable") is None for info in found) else found


@caught_by("test_unusable_device_is_shown_and_not_handed_out")
class HandsOutBroken(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        broken = [info for info in self.right.devices() if info.get_property("unusable")]
        return {*broken, *super().retrieve_resource_info(amount)} if broken else super().retrieve_resource_info(amount)


@caught_by("test_unknown_option_is_refused")
class TakesAnyOption(Wrong):
    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__({name: value for name, value in options.items() if name != "no-such-option"})


@caught_by("test_options_of_the_framework_are_understood")
class KnowsNoTimeoutOfAWait(Wrong):
    def __init__(self, options: Mapping[str, str]) -> None:
        if {"timeout", "wait"} <= options.keys():
            raise ConfigurationError("unknown option 'timeout'")
        super().__init__(options)


@caught_by("test_wrong_value_of_the_frameworks_is_refused")
class TakesAnyWait(Wrong):
    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__({name: value for name, value in options.items() if (name, value) != ("wait", "soon")})


@caught_by("test_wrong_value_of_its_own_is_refused")
class TakesAnyPace(Wrong):
    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__({name: value for name, value in options.items() if name != "pace"})


@caught_by("test_enumeration_that_fails_is_an_error")
class NothingIsNoError(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        try:
            return super().retrieve_resource_info(amount)
        except DiscoveryError as error:
            if "bus" not in str(error):
                raise
            raise NotEnoughDevicesError(f"{amount} wanted, this host has 0") from None


@caught_by("test_enumeration_that_fails_is_an_error")
class EmptyList(Wrong):
    def devices(self) -> list[ExternalResourceInfo]:
        with contextlib.suppress(ExternalResourceError):
            return self.right.devices()
        return []


@caught_by("test_enumeration_that_takes_too_long_is_an_error")
class TakesItsTime(Wrong):
    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__({**options, "timeout": "80000"} if options.get("hangs") else options)


class Changed:
    """An info that says and compares what the one inside does."""

    def __init__(self, info: ExternalResourceInfo) -> None:
        self.info = info
        self.environment = getattr(info, "environment", {})

    def get_property(self, key: str) -> str | None:
        return self.info.get_property(key)

    def get_keys(self) -> Collection[str]:
        return self.info.get_keys()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Changed) and self.info == other.info

    def __hash__(self) -> int:
        return hash(self.info)


class Rewraps(Wrong):
    kind: type[Changed]

    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        return {self.kind(info) for info in super().retrieve_resource_info(amount)}

    def environment(self, infos: Collection[Any]) -> Mapping[str, str]:
        return self.right.environment([info.info for info in infos])


class Coloured(Changed):
    def get_keys(self) -> Collection[str]:
        return (*super().get_keys(), "colour")


class Nameless(Changed):
    def get_keys(self) -> Collection[str]:
        return [key for key in super().get_keys() if key != "index"]


class Strict(Changed):
    def get_property(self, key: str) -> str | None:
        if key not in self.get_keys():
            raise KeyError(key)
        return super().get_property(key)


class Single(Changed):
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Changed.__hash__


class Scattered(Changed):
    __eq__ = Changed.__eq__

    def __hash__(self) -> int:
        return id(self)


class Alike(Changed):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Changed)

    __hash__ = Changed.__hash__


class Locked(Changed):
    def __init__(self, info: ExternalResourceInfo) -> None:
        super().__init__(info)
        self.lock = threading.Lock()


#: Drivers whose infos are wrong.
_REWRAPPING = (
    ("NamesWhatItHasNot", Coloured, "test_infos_have_the_properties_that_they_name"),
    ("HasNoIndex", Nameless, "test_infos_have_the_properties_that_they_name"),
    ("RaisesKeyError", Strict, "test_property_that_a_device_has_not_is_none"),
    ("EqualToItselfAlone", Single, "test_infos_of_one_device_are_equal_and_hash_alike"),
    ("HashesByItself", Scattered, "test_infos_of_one_device_are_equal_and_hash_alike"),
    ("AllAlike", Alike, "test_infos_of_two_devices_differ"),
    ("HoldsALock", Locked, "test_infos_outlast_pickling"),
)
for _name, _kind, _test in _REWRAPPING:
    globals()[_name] = caught_by(_test)(type(_name, (Rewraps,), {"kind": _kind}))


@caught_by("test_environment_tells_devices_apart")
class OnlyTheFirst(Wrong):
    def environment(self, infos: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
        return self.right.environment(list(infos)[:1])


@caught_by("test_nothing_is_printed_on_stdout")
class Chats(Wrong):
    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        print("looking for widgets ...")  # noqa: T201 - its fault
        return super().retrieve_resource_info(amount)
