from collections.abc import Mapping
from pathlib import Path

from externalresource_serial import serial

from externalresource.testing import DriverConformance


class TestSerial(DriverConformance):
    factory = "serial"

    def machine(self, folder: Path, amount: int) -> Mapping[str, str]:
        links = folder / "by-id"
        links.mkdir()
        for number in range(amount):
            port = folder / f"ttyUSB{number}"
            port.touch()
            (links / f"usb-FTDI_FT232R_A{number}").symlink_to(port)
        return {"folder": str(links)}

    def unusable(self, folder: Path) -> Mapping[str, str]:
        options = self.machine(folder, 2)
        (folder / "ttyUSB1").unlink()
        return options

    def failing(self, folder: Path) -> Mapping[str, str]:
        (folder / "by-id").touch()
        return {"folder": str(folder / "by-id")}


def test_host_without_serial_ports_has_no_such_folder(tmp_path: Path) -> None:
    driver = serial.create_external_resource_driver({"folder": str(tmp_path / "by-id")})
    assert driver.devices() == []
