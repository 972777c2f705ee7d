"""Recorded machines, asked as if they were here.

What is expected was read by hand off another recording of the same machine where there is one (`-q` and the plain
table for what is parsed from `--query-gpu`, `--query-compute-apps`, `-L` and the XML), else off the recording itself.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from externalresource.records import replace
from externalresource_gpu.backends.nvidia_smi.backend import NvidiaSmi
from externalresource_gpu.device import Device, Process
from tests.support.backends import soon
from tests.support.recordings import H100, H100_MIG, H200, L40S, RECORDED, RTX_2080, RTX_2080_WINDOWS, RTX_4080, read

pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings of nvidia-smi are not here")

GPU = "GPU-00000000-0000-0000-0000-000000000000"  # all captures named uo- have this UUID

# Answers each question from a recording, in the way that it was asked: columns, header and units.
PROGRAM = """
import csv
recorded = {recorded!r}
def table(kind, wanted):
    rows = list(csv.reader(open(recorded[kind], newline=""), skipinitialspace=True))
    other = {{"gpu_bus_id": "pci.bus_id", "used_gpu_memory [MiB]": "used_memory [MiB]"}}
    header = [other.get(name, name).partition(" [") for name in rows[0]]
    column = {{name: number for number, (name, _, _) in enumerate(header)}}
    for field in wanted:
        if field not in column and field != "index":
            print('Field "' + field + '" is not a valid field to query.\\n')
            sys.exit(2)
    for position, row in enumerate(rows[1:]):
        values = [cell.removesuffix(" " + unit.rstrip("]")) for cell, (_, _, unit) in zip(row, header)]
        print(", ".join(values[column[field]] if field in column else str(position) for field in wanted))
question, _, wanted = argv[0].partition("=")
kind = {{"--query-gpu": "gpus", "-L": "list", "topo": "topo", "--query-compute-apps": "apps", "-q": "xml"}}[question]
if kind not in recorded:
    print("Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.")
    sys.exit(255)
if wanted:
    table(kind, wanted.split(","))
else:
    sys.stdout.write(open(recorded[kind], newline="").read())
"""

StandIn = Callable[[dict[str, str]], NvidiaSmi]


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    def write(recorded: dict[str, str]) -> NvidiaSmi:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!{sys.executable} -SE\nimport sys\nargv = sys.argv[1:]\n{PROGRAM.format(recorded=recorded)}"
        )
        program.chmod(0o755)
        version = tmp_path / "version"
        version.write_text("595.71.05\n")
        return NvidiaSmi(str(program), str(version), str(tmp_path / "gpus"), topology=True, processes=True)

    return write


def recordings(machine: str, state: str = "load") -> dict[str, str]:
    files = {
        "gpus": f"query-gpu/uo-{machine}.{state}.csv",
        "list": f"list/uo-{machine}.L.txt",
        "topo": f"topo/uo-{machine}.topo-m.txt",
        "apps": f"query-gpu/uo-{machine}.{state}.compute-apps.csv",
    }
    return {kind: str(RECORDED / file) for kind, file in files.items() if (RECORDED / file).exists()}


def anywhere(device: Device) -> Device:
    """The device without its NUMA node: the machine that runs this may have one on the same bus."""
    return replace(device, numa_node=None, instances=tuple(map(anywhere, device.instances)))


WINDOWS_PIDS = (2056, 4680, 12332, 12444, 14160, 14184, 15076, 16280, 20372, 24804, 25704, 26660)


def machine(
    name: str,
    total: int,
    used: int,
    bus_id: str,
    mig_mode: str | None,
    processes: dict[int, int | None] | None,
) -> Device:
    return Device(
        index=0,
        uuid=GPU,
        name=name,
        memory_total=total,
        memory_used=used,
        pci_bus_id=bus_id,
        compute_mode="Default",
        mig_mode=mig_mode,
        processes=processes if processes is None else tuple(Process(pid, of) for pid, of in processes.items()),
    )


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        (
            H100,
            "load",
            machine(
                "NVIDIA H100 80GB HBM3",
                81559,
                19818,
                "00000000:00:09.0",
                "Disabled",
                {11327: 2566, 11328: 1542, 11345: 15690},
            ),
        ),
        (
            H200,
            "load",
            machine(
                "NVIDIA H200",
                143771,
                32362,
                "00000000:83:00.0",
                "Disabled",
                {10291: 2566, 10293: 1542, 10309: 28234},
            ),
        ),
        (H200, "idle", machine("NVIDIA H200", 143771, 0, "00000000:83:00.0", "Disabled", None)),
        (L40S, "load", machine("NVIDIA L40S", 46068, 1235, "00000000:01:00.0", None, {20037: 538, 20038: 681})),
        (
            RTX_2080,
            "load",
            machine("NVIDIA GeForce RTX 2080 SUPER", 8192, 819, "00000000:0C:00.0", None, {5267: 230, 5268: 370}),
        ),
        (
            RTX_2080_WINDOWS,
            "load",
            machine(
                "NVIDIA GeForce RTX 2080 SUPER",
                8192,
                1296,
                "00000000:0C:00.0",
                None,
                dict.fromkeys(WINDOWS_PIDS),
            ),
        ),
        (
            RTX_4080,
            "load",
            machine(
                "NVIDIA GeForce RTX 4080 SUPER",
                16376,
                1474,
                "00000000:01:00.0",
                None,
                {2165: 25, 5021: 360, 5022: 503},
            ),
        ),
    ],
)
def test_recorded_machine(stand_in: StandIn, name: str, state: str, expected: Device) -> None:
    backend = stand_in(recordings(name, state))
    assert [anywhere(device) for device in backend.devices(soon())] == [expected]
    assert backend.links(soon()) == {}  # one GPU each; under Windows it is an error to ask


def instance(index: int, profile: str, uuid: str, ids: tuple[int, int], total: int, used: int) -> Device:
    return Device(
        index=0,
        uuid=uuid,
        name=f"NVIDIA H100 80GB HBM3 MIG {profile}",
        memory_total=total,
        memory_used=used,
        pci_bus_id="00000000:00:09.0",
        mig_profile=profile,
        mig_index=index,
        gpu_instance=ids[0],
        compute_instance=ids[1],
        parent_uuid=GPU,
    )


def xml_of(text: str) -> str:
    """The MIG devices of a recorded `-q` as `-q -x` writes them: of this machine there is no XML."""
    blocks = re.findall(
        r"^    MIG Device\n +Index +: (\d+)\n +GPU Instance ID +: (\d+)\n +Compute Instance ID +: (\d+)\n"
        r".*?^        Shared FB Memory Usage\n +Total +: (\d+ MiB)\n +Reserved .*?\n +Used +: (\d+ MiB)\n",
        text,
        re.MULTILINE | re.DOTALL,
    )
    devices = "".join(
        f"<mig_device><index>{index}</index><gpu_instance_id>{gi}</gpu_instance_id><compute_instance_id>{ci}"
        f"</compute_instance_id><fb_memory_usage><total>{total}</total><used>{used}</used></fb_memory_usage></mig_device>"
        for index, gi, ci, total, used in blocks
    )
    return f"<nvidia_smi_log><gpu><mig_devices>{devices}</mig_devices><uuid>{GPU}</uuid></gpu></nvidia_smi_log>"


def test_recorded_machine_with_mig_is_what_its_table_shows(stand_in: StandIn, tmp_path: Path) -> None:
    xml = tmp_path / "recorded.xml"
    xml.write_text(xml_of(read(f"q/uo-{H100_MIG}.load.txt")))
    [found] = stand_in({**recordings(H100_MIG), "xml": str(xml)}).devices(soon())
    processes = {21180: 2296, 21181: 1272, 21198: 7484}
    assert anywhere(found) == replace(
        machine("NVIDIA H100 80GB HBM3", 81559, 11125, "00000000:00:09.0", "Enabled", dict(processes)),
        instances=(
            instance(0, "3g.40gb", "MIG-00000000-0000-0000-0000-000000000000", (2, 0), 40448, 11091),
            instance(1, "2g.20gb", "MIG-00000001-0000-0000-0000-000000000001", (3, 0), 20096, 17),
            instance(2, "1g.10gb", "MIG-00000002-0000-0000-0000-000000000002", (9, 0), 9984, 9),
            instance(3, "1g.10gb", "MIG-00000003-0000-0000-0000-000000000003", (10, 0), 9984, 9),
        ),
    )


def test_recorded_machine_with_mig_but_without_its_xml(stand_in: StandIn) -> None:
    [found] = stand_in(recordings(H100_MIG, "idle")).devices(soon())
    assert (found.memory_used, found.unusable, found.processes) == (59, None, None)
    assert [(of.mig_profile, of.memory_total, of.gpu_instance) for of in found.instances] == [
        ("3g.40gb", None, None),
        ("2g.20gb", None, None),
        ("1g.10gb", None, None),
        ("1g.10gb", None, None),
    ]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "vertex-rtx2080super-win.csv",
            [
                Device(
                    index=0,
                    uuid="GPU-df6e7a7c-7314-46f8-abc4-b88b36dcf3aa",
                    name="NVIDIA GeForce RTX 2080 SUPER",
                    memory_total=8192,
                    memory_used=876,
                    pci_bus_id="00000000:0C:00.0",
                    compute_mode="Default",
                )
            ],
        ),
        # The index was not recorded with these two: rows are in its order.
        (
            "a0s-nvidia-smi-1.csv",
            [
                Device(0, "GPU-d86c351b-8f94-33ab-3b97-accb421fef6d", memory_used=754),
                Device(1, "GPU-683c6e09-3969-31a5-b7ca-cc88252b7fce", memory_used=641),
            ],
        ),
        (
            "a0s-nvidia-smi-2.csv",
            [
                Device(0, "GPU-20fe89bc-c8ef-5a9f-078e-efa3324d790b", memory_total=8119, memory_used=754),
                Device(1, "GPU-68988cf6-8de9-6585-a263-d2e3ea96b75a", memory_total=4043, memory_used=586),
                Device(2, "GPU-90e3dab0-b59d-8bf6-d909-d4fab8d2f29b", memory_total=8119, memory_used=641),
            ],
        ),
        (
            "azhpc-v100x4-ecc-fields.csv",
            [
                Device(0, pci_bus_id="00000001:00:00.0"),
                Device(1, pci_bus_id="00000002:00:00.0"),
                Device(2, pci_bus_id="0000000A:00:00.0"),
                Device(3, pci_bus_id="0000000D:00:00.0"),
            ],
        ),
    ],
)
def test_recorded_table_of_other_fields(stand_in: StandIn, file: str, expected: list[Device]) -> None:
    found = stand_in({"gpus": str(RECORDED / "query-gpu" / file)}).devices(soon())
    assert [anywhere(device) for device in found] == expected
