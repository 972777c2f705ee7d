"""Serial ports, one process each."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from externalresource.api import Device, driver


@dataclass(frozen=True)
class Options:
    #: Of links to the ports, named after maker, model and serial number. udev removes it with the last of them.
    folder: str = "/dev/serial/by-id"


@driver("serial", Options)
def serial(options: Options) -> Iterator[Device]:
    """Serial ports, as udev lists them in /dev/serial/by-id."""
    folder = Path(options.folder)
    for link in sorted(folder.iterdir()) if folder.exists() else []:
        port = link.resolve()
        yield Device(
            port.name,
            uuid=link.name,
            properties={"path": str(port)},
            environment={"SERIAL_PORTS": str(port)},
            unusable=None if os.access(port, os.R_OK | os.W_OK) else f"{port} cannot be read and written by this user",
        )
