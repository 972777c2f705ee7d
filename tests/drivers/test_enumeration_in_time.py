"""What a driver's function may ask of the framework: its deadline, and the last word on the variables."""

import time
from collections.abc import Iterable, Mapping

from externalresource.api import Device, driver


def test_enumeration_that_asks_for_its_deadline_is_told_one_before_the_frameworks_own() -> None:
    told = []

    @driver("fpga")
    def fpga(deadline: float) -> Iterable[Device]:
        told.append(deadline)
        return [Device("0")]

    before = time.monotonic()
    fpga.create_external_resource_driver({"timeout": "1000"}).devices()
    assert before + 800 < told[0] < time.monotonic() + 1000


def test_driver_has_the_last_word_on_the_variables_of_a_process() -> None:
    def numbered(variables: Mapping[str, str]) -> dict[str, str]:
        return {**variables, "FPGA_COUNT": str(len(variables["FPGA"].split(",")))}

    @driver("fpga", environment=numbered)
    def fpga() -> Iterable[Device]:
        return [Device(index, environment={"FPGA": index}) for index in "01"]

    made = fpga.create_external_resource_driver({})
    assert made.environment(made.retrieve_resource_info(2)) == {"FPGA": "0,1", "FPGA_COUNT": "2"}
