"""Devices for each process of a pool: an initializer for those of `concurrent.futures` and `multiprocessing`."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NoReturn

from externalresource.context import RuntimeContext, check_amount, driver_to_claim, variables_of
from externalresource.errors import ConfigurationError, ExternalResourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.drivers import ExternalResourceDriver

_BREATH = 2.0  # seconds between a refusal and the next worker, which multiprocessing.Pool starts in place of this one


def claim_for_worker(
    name: str = "gpu",
    amount: int = 1,
    options: Mapping[str, object] | None = None,
    *,
    driver_factory: str | None = None,
) -> RuntimeContext:
    """Claim devices for this process until it ends, however it ends, and set the environment that names them.

    To be called before anything in the process uses the devices: by a pool as the initializer of its workers, with
    `initargs=("gpu", 1, {"wait": "60"})`. The arguments are those of `externalresource.claim`. An initializer that
    fails breaks a ProcessPoolExecutor. A multiprocessing.Pool starts another worker for ever: there the refusal stands
    on stderr, every two seconds. A pool of threads is refused: all of them share one environment.

    If the call fails, the environment names no device before the error is raised: whoever only logs the error runs
    without devices, not on those of others. A driver that cannot be made knows no variables: a `name` that nobody
    knows masks nothing. The next call sees the masks that this process inherited.

    Another call with the same arguments, from any thread, returns the same context until that is closed, and claims
    anew then; a call with other arguments is an error. A forked child has nothing of its parent's.
    """
    asked = _Asked(name, amount, options, driver_factory)
    try:
        with _this_process.lock:
            return _this_process.context(asked)
    except ExternalResourceError as error:
        if "PoolWorker-" not in multiprocessing.current_process().name:  # as multiprocessing.Pool names its workers
            raise
        _rest_and_end(name, error)


class _Asked:
    """What one call asks for."""

    def __init__(
        self, name: str, amount: int, options: Mapping[str, object] | None, driver_factory: str | None
    ) -> None:
        self.name, self.amount, self.factory = name, amount, driver_factory
        self.options = {} if options is None else dict(options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and vars(self) == vars(other)

    def __str__(self) -> str:
        words = [f"{self.amount!r} of {self.name!r}"]
        words += [f"options {self.options}"] if self.options else []
        words += [f"driver_factory {self.factory!r}"] if self.factory else []
        return ", ".join(words)

    __hash__ = None  # type: ignore[assignment] # options may have any values


class _ThisProcess:
    """What this process has by `claim_for_worker`, and what of its environment is not as it was inherited."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._asked: _Asked | None = None
        self._context: RuntimeContext | None = None
        #: What was set, and what stood there before.
        self._set: dict[str, tuple[str, str | None]] = {}

    def forget(self) -> None:
        """Have nothing, in a forked child: but what was set there is not what its parent inherited."""
        self.lock = threading.RLock()
        self._context = None

    def context(self, asked: _Asked) -> RuntimeContext:
        """Return the context that is there, or a new one. No other thread does the same meanwhile."""
        if self._context is None or self._context.is_closed:
            self._context = self._claimed(asked)
            self._asked = asked
        elif asked != self._asked:
            raise ConfigurationError(
                f"this process already has devices by claim_for_worker ({self._asked}), and now asks for others "
                f"({asked}): close() what it returned first, or use externalresource.claim for further devices"
            )
        return self._context

    def _claimed(self, asked: _Asked) -> RuntimeContext:
        self._set_as_inherited()
        driver: ExternalResourceDriver | None = None
        try:
            with ExitStack() as undoing:
                driver = driver_to_claim(asked.name, asked.factory, asked.options)
                check_amount(asked.name, asked.amount)
                _check_thread(asked.name)
                context = undoing.enter_context(RuntimeContext({asked.name: (driver, asked.amount)}))
                self._put(context.environment())
                undoing.pop_all()
                return context
        except BaseException:  # an interrupt, too, may be logged only
            self._put(_variables_for_none(asked, driver))
            raise

    def _put(self, variables: Mapping[str, str]) -> None:
        for name, value in variables.items():
            _, inherited = self._set.get(name, ("", os.environ.get(name)))
            self._set[name] = value, inherited
            os.environ[name] = value

    def _set_as_inherited(self) -> None:
        """Undo what was set, unless somebody has set something else since then."""
        for name, (value, inherited) in self._set.items():
            if os.environ.get(name) == value:
                if inherited is None:
                    del os.environ[name]
                else:
                    os.environ[name] = inherited
        self._set.clear()


def _check_thread(name: str) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError(
            f"{name!r} is claimed for a whole process, and this is one of its threads, which all share one "
            "environment: use a pool of processes"
        )


def _variables_for_none(asked: _Asked, driver: "ExternalResourceDriver | None") -> Mapping[str, str]:
    """Return the variables by which a process sees none of the devices; nothing, if no driver tells."""
    try:
        if driver is None:  # its options may be why: without any it may tell
            driver = driver_to_claim(asked.name, asked.factory, {})
        return variables_of(asked.name, driver, frozenset())
    except ExternalResourceError:
        return {}


def _rest_and_end(name: str, error: ExternalResourceError) -> NoReturn:
    sys.stderr.write(f"externalresource: {multiprocessing.current_process().name} gets no {name!r}: {error}\n")
    sys.stderr.flush()
    time.sleep(_BREATH)
    raise SystemExit(1) from None


_this_process = _ThisProcess()
os.register_at_fork(after_in_child=_this_process.forget)
