"""Stand-ins for amd-smi and rocm-smi, which print what the real ones print: ROCm's docs, "AMD SMI CLI tool usage"."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from externalresource.drivers.loading import create_driver
from externalresource.errors import DiscoveryError, ExternalResourceError


def serial(number: int) -> str:
    return f"0x{0xDE8287300DA37C00 + number:016X}"


def uuid(number: int) -> str:
    return f"GPU-{0xDE8287300DA37C00 + number:016x}"


def listed(gpu: int, **other: Any) -> dict[str, Any]:
    """Return an entry of `amd-smi list --json`."""
    return {
        "gpu": gpu,
        "bdf": f"0000:{0x0C + 16 * gpu:02x}:00.0",
        "uuid": f"deff74a1-0000-1000-8082-87300da37c{gpu:02x}",
        "kfd_id": 64411 + gpu,
        "node_id": 2 + gpu,
        "partition_id": 0,
    } | other


def static(gpu: int, **other: Any) -> dict[str, Any]:
    """Return an entry of `amd-smi static --json`."""
    return {
        "gpu": gpu,
        "asic": {
            "market_name": "AMD Instinct MI300X",
            "vendor_id": "0x1002",
            "device_id": "0x74a1",
            "asic_serial": serial(gpu),
            "oam_id": gpu,
            "target_graphics_version": "gfx942",
        },
        "bus": {"bdf": f"0000:{0x0C + 16 * gpu:02x}:00.0", "max_pcie_speed": {"value": 32, "unit": "GT/s"}},
        "driver": {"name": "amdgpu", "version": "6.12.12"},
        "ras": {"eeprom_version": "0x30000", "bad_page_threshold": 256, "bad_page_threshold_exceeded": "False"},
        "vram": {"type": "HBM3", "vendor": "N/A", "size": {"value": 196592, "unit": "MB"}},
        "partition": {"accelerator_partition": "SPX", "memory_partition": "NPS1", "partition_id": 0},
        "numa": {"node": gpu % 2, "affinity": gpu % 2},
    } | other


def card(number: int, **other: str) -> dict[str, str]:
    """Return a card of `rocm-smi --json`, all of whose values are texts."""
    return {
        "Unique ID": serial(number).lower(),
        "VRAM Total Memory (B)": "68702699520",
        "PCI Bus": f"0000:{0xC1 + number:02X}:00.0",
        "Card series": "Instinct MI210",
        "(Topology) Numa Node": "1",
    } | other


def tool(folder: Path, name: str, answers: Mapping[str, str], *, then: str = "") -> str:
    """Write a command that prints an answer by its first argument."""
    folder.mkdir(exist_ok=True)
    cases = "".join(f"{word}) printf '%s\\n' {shlex.quote(text)};;\n" for word, text in answers.items())
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}esac\n{then}\n')
    path.chmod(0o755)
    return str(path)


def amd_smi(folder: Path, lists: Any, statics: Any, *, before: str = "", then: str = "") -> str:
    answers = {"list": before + json.dumps(lists, indent=4), "static": before + json.dumps(statics, indent=4)}
    return tool(folder, "amd-smi", answers, then=then)


def rocm_smi(folder: Path, cards: Sequence[Mapping[str, str]], *, before: str = "") -> str:
    found = {f"card{number}": card for number, card in enumerate(cards)}
    return tool(
        folder, "rocm-smi", {"--showuniqueid": before + json.dumps({**found, "system": {"Driver version": "5.18.13"}})}
    )


def amd(command: str | None, **options: str) -> Any:
    given = {} if command is None else {"command": command}
    return create_driver(
        "externalresource_amd.driver:amd", given | {name.replace("_", "-"): value for name, value in options.items()}
    )


def shown(command: str | None, **options: str) -> list[dict[str, str]]:
    return [{key: info.get_property(key) for key in info.get_keys()} for info in amd(command, **options).devices()]


def unusable(command: str, **options: str) -> list[str | None]:
    return [device.get("unusable") for device in shown(command, **options)]


def failure(command: str | None, **options: str) -> str:
    with pytest.raises(ExternalResourceError) as caught:
        amd(command, **options).devices()
    assert isinstance(caught.value, DiscoveryError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def variables(command: str, amount: int, **options: str) -> dict[str, str]:
    driver = amd(command, **options)
    return dict(driver.environment(driver.retrieve_resource_info(amount)))
