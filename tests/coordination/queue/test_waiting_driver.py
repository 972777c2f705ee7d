"""The driver while its script waits: how long, what it says, and what a refusal says."""

import os
import re
import signal
import threading
import time

import pytest

import externalresource
from externalresource.errors import ExternalResourceError, NotEnoughDevicesError
from tests.support.claiming import LONG, Asker, leftovers, places
from tests.support.processes import Start, wait_until


def options(path: str, wait: float = LONG) -> dict[str, str]:
    return {"simulate": "1", "coordination-file": path, "wait": f"{wait:g}"}


def test_driver_waits_longer_than_its_script_may_take(path: str, held: Asker, start: Start) -> None:
    def free_it_late() -> None:
        wait_until(lambda: places(path))
        time.sleep(2.5)
        os.kill(held.pid, signal.SIGKILL)

    start(free_it_late)
    with externalresource.claim("gpu", options=options(path) | {"discovery-script.timeout": "1"}) as context:
        assert len(context.get_external_resource_infos("gpu")) == 1
    assert leftovers(path) == set()


def test_driver_gives_up_with_the_reason(path: str, held: Asker) -> None:
    with pytest.raises(NotEnoughDevicesError, match=rf"held by pid {held.pid} .*; waited 0\.1 s for them$"):
        externalresource.claim("gpu", options=options(path, 0.1))


def test_driver_says_once_for_whom_its_script_waits(path: str, held: Asker, caplog: pytest.LogCaptureFixture) -> None:
    def end_once_told() -> None:
        wait_until(lambda: caplog.messages)
        held.kill()

    ending = threading.Thread(target=end_once_told)
    ending.start()
    with externalresource.claim("gpu", options=options(path)):
        [said] = caplog.messages
    ending.join()
    assert re.fullmatch(rf"waiting for gpu: 1 wanted, 0 of 1 free; held by pid {held.pid} \(.*\), since \S+: 0", said)


def test_refusal_repeats_nothing_of_what_was_said_while_waiting(path: str, held: Asker) -> None:
    with pytest.raises(ExternalResourceError) as caught:
        externalresource.claim("gpu", options=options(path, 0.3))
    assert str(caught.value).startswith("1 wanted, 0 of 1 free; held by pid ")
    assert str(caught.value).endswith("; waited 0.3 s for them")
