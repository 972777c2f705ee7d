"""What each test can rely on, however pytest was started."""

import os
import signal
from collections.abc import Generator

import pytest
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
