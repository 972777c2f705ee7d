"""What each test can rely on, however pytest was started."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator

import pytest
from coverage import Coverage
from hypothesis import HealthCheck, settings

# A machine that has much to do is slow, which is no failure.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure() -> None:
    """Let signals end what the tests start, also if pytest was started with them ignored, as by nohup.

    Coverage counts what runs in the tests' own processes, not what their children run.
    """
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:  # measured itself; to measure what it starts would take twice the time
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    if threading.gettrace():
        _measure_all_threads()


def _measure_all_threads() -> None:
    """Let coverage see threads, too, that are started without the module threading."""
    start = _thread.start_new_thread

    def start_measured(function: Callable[..., object], arguments: tuple[object, ...]) -> int:
        def run() -> None:
            sys.settrace(threading.gettrace())
            function(*arguments)

        return start(run, ())

    _thread.start_new_thread = start_measured  # type: ignore[assignment]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Let coverage rest while a property is tried: measured, its examples take three times as long.

    What only a property would reach is said to be missing: it deserves a test with an example of its own.
    """
    tracer = sys.gettrace() if Coverage.current() and item.get_closest_marker("hypothesis") else None
    if tracer is None:
        return (yield)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let nothing be skipped but what needs a GPU: a test that quietly stopped running proves nothing."""
    report = yield
    if report.skipped and os.environ.get("EXTERNALRESOURCE_NO_SKIPS") and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped, which EXTERNALRESOURCE_NO_SKIPS does not allow: {report.longrepr}"
    return report
