"""One machine, told of by NVML, by nvidia-smi and by a YAML file: the records are the same."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import create
from externalresource_gpu.backends.nvidia_smi.backend import NvidiaSmi
from externalresource_gpu.backends.simulated.backend import Simulated
from tests.support.nvml_stub import Stub

if TYPE_CHECKING:
    from externalresource_gpu.backends import Backend

# What nvidia-smi prints: for the fields that it is asked for, or for the words that it is given. The exit status tells
# of a GPU that cannot be listed; for words that list none it is 0 here, as nobody has recorded it.
PROGRAM = """#!{python} -SE
import json, sys
said = json.load(open({answers!r}))
words = " ".join(sys.argv[1:])
if words.startswith("--query-gpu="):
    print(*said["aside"], sep="\\n")
    for row in said["rows"]:
        print(", ".join(row[field] for field in words.partition("=")[2].split()[0].split(",")))
    sys.exit(said["status"])
text = said["texts"].get(words.split(" --format=")[0], "Invalid combination of input arguments.")
print(text)
sys.exit(2 if text.startswith("Invalid") else said["status"] if "Unable" in text else 0)
"""
NAME = "NVIDIA A100-SXM4-40GB"

# What a machine file says of all of its GPUs, and of one of which nothing is known.
EACH = f"""
each:
  name: {NAME}
  memory_total: 40960
  memory_used: 301
  compute_mode: Default
  mig_mode: Disabled
  numa_node: 0
  processes: []"""
UNKNOWN = """name: unknown
    memory_total: unknown
    memory_used: unknown
    compute_mode: unknown
    mig_mode: unknown
    numa_node: unknown
    processes: unknown"""


def row(index: int, **differing: str) -> dict[str, str]:
    cells = {
        "index": str(index),
        "uuid": f"GPU-00000000-0000-0000-0000-{index:012}",
        "pci.bus_id": f"0000F00{index}:0A:00.0",
        "name": NAME,
        "memory.total": "40960",
        "memory.used": "301",
        "compute_mode": "Default",
        "mig.mode.current": "Disabled",
        "gpu_recovery_action": "None",
        "utilization.gpu": "0",
        "temperature.gpu": "30",
    }
    return cells | {name.replace("__", "."): cell for name, cell in differing.items()}


def listed(index: int, *instances: str) -> str:
    return "\n".join([f"GPU {index}: {NAME} (UUID: GPU-00000000-0000-0000-0000-{index:012})", *instances])


def handle_of(index: int, why: str) -> str:
    return f"Unable to determine the device handle for GPU{index}: F00{index}:0A:00.0: {why}"


LOST = handle_of(2, "GPU is lost.  Reboot the system to recover this GPU")

INSTANCES = """  MIG 1c.3g.20gb  Device  0: (UUID: MIG-00000000-0000-0000-0000-000000000003)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-00000001-0000-0000-0000-000000000003)
  MIG 1g.5gb      Device  3: (UUID: MIG-00000003-0000-0000-0000-000000000003)
  MIG 2g.10gb     Device  5: (UUID: MIG-00000005-0000-0000-0000-000000000003)"""


def instance_element(index: int, gpu_instance: int, compute_instance: int, total: int, used: int) -> str:
    return f"""<mig_device><index>{index}</index><gpu_instance_id>{gpu_instance}</gpu_instance_id>
<compute_instance_id>{compute_instance}</compute_instance_id><fb_memory_usage><total>{total} MiB</total>
<reserved>0 MiB</reserved><used>{used} MiB</used><free>{total - used} MiB</free></fb_memory_usage></mig_device>"""


XML = f"""<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log><driver_version>590.48.01</driver_version><attached_gpus>4</attached_gpus>
<gpu id="0000F003:0A:00.0"><product_name>{NAME}</product_name>
<mig_mode><current_mig>Enabled</current_mig><pending_mig>Enabled</pending_mig></mig_mode>
<mig_devices>
{instance_element(0, 1, 0, 19968, 26)}
{instance_element(1, 1, 1, 19968, 26)}
{instance_element(3, 9, 0, 4864, 9)}
{instance_element(5, 3, 0, 9856, 0)}
</mig_devices>
<uuid>GPU-00000000-0000-0000-0000-000000000003</uuid></gpu></nvidia_smi_log>"""


def matrix(indices: Sequence[int], *rows: str) -> str:
    names = [f"GPU{index}" for index in indices]
    head = "\t".join(["", *names, "CPU Affinity", "NUMA Affinity"])
    lines = ["\t".join([name, *cells.split(), "0-23", "0"]) for name, cells in zip(names, rows, strict=True)]
    return "\n".join([f"\x1b[4m{head}\x1b[0m", *lines, "", "Legend:", "", "  X    = Self"])


@dataclass
class Machine:
    """What each of them says of it."""

    words: Sequence[str]
    count: int
    rows: Sequence[Mapping[str, str]]
    topology: str
    yaml: str
    aside: Sequence[str] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    status: int = 0


# Two whole GPUs with NVLink between them, on one of which something computes; one lost; one cut into MIG instances,
# two of them in one slice, and with a hole in their numbers.
MIXED = Machine(
    words=["nvlink", "busy:1", "lost:2", "mig:3"],
    count=4,
    aside=[LOST],
    status=15,
    rows=[row(0), row(1), row(3, mig__mode__current="Enabled", utilization__gpu="[N/A]")],
    topology=matrix([0, 1, 3], "X NV2 PXB", "NV2 X NV1", "PXB NV1 X"),
    texts={
        "-L": "\n".join([listed(0), listed(1), LOST, listed(3, INSTANCES)]),
        "-q -x": XML,
        "--query-compute-apps=gpu_uuid,pid,used_memory": """\
GPU-00000000-0000-0000-0000-000000000001, 4711, 2566
GPU-00000000-0000-0000-0000-000000000001, 4712, [N/A]""",
    },
    yaml=f"""{EACH}
gpus:
  - uuid: GPU-00000000-0000-0000-0000-000000000000
    pci_bus_id: 0000F000:0A:00.0
  - uuid: GPU-00000000-0000-0000-0000-000000000001
    pci_bus_id: 0000F001:0A:00.0
    processes:
      - {{pid: 4711, memory: 2566}}
      - {{pid: 4712}}
  - uuid: unknown
    pci_bus_id: 0000F002:0A:00.0
    unusable: GPU is lost
    {UNKNOWN}
  - uuid: GPU-00000000-0000-0000-0000-000000000003
    index: 3
    pci_bus_id: 0000F003:0A:00.0
    mig_mode: Enabled
    numa_node: 1
    instances:
      - {{profile: 1c.3g.20gb, gpu_instance: 1, compute_instance: 0, memory_total: 19968, memory_used: 26,
          uuid: MIG-00000000-0000-0000-0000-000000000003}}
      - {{profile: 1c.3g.20gb, gpu_instance: 1, compute_instance: 1, memory_total: 19968, memory_used: 26,
          uuid: MIG-00000001-0000-0000-0000-000000000003}}
      - {{profile: 1g.5gb, gpu_instance: 9, compute_instance: 0, memory_total: 4864, memory_used: 9, mig_index: 3,
          uuid: MIG-00000003-0000-0000-0000-000000000003}}
      - {{profile: 2g.10gb, gpu_instance: 3, compute_instance: 0, memory_total: 9856, memory_used: 0, mig_index: 5,
          uuid: MIG-00000005-0000-0000-0000-000000000003}}
links:
  GPU0: X   NV2 PXB
  GPU1: NV2 X   NV1
  GPU3: PXB NV1 X
""",
)

# GPUs at switches, one of which has fewer links than the others.
SWITCHED = Machine(
    words=["nvswitch", "few links:1"],
    count=3,
    rows=[row(0), row(1), row(2)],
    topology=matrix([0, 1, 2], "X NV10 NV12", "NV10 X NV10", "NV12 NV10 X"),
    yaml=f"""{EACH}
gpus:
  - {{uuid: GPU-00000000-0000-0000-0000-000000000000, pci_bus_id: "0000F000:0A:00.0"}}
  - {{uuid: GPU-00000000-0000-0000-0000-000000000001, pci_bus_id: "0000F001:0A:00.0"}}
  - {{uuid: GPU-00000000-0000-0000-0000-000000000002, pci_bus_id: "0000F002:0A:00.0", numa_node: 1}}
links:
  GPU0: X    NV10 NV12
  GPU1: NV10 X    NV10
  GPU2: NV12 NV10 X
""",
)

# One that wants a reset and looks idle, a healthy one whose memory is the machine's, one for nobody, one that is
# another user's, one that wants a reset and says so only when asked for it, and one whose memory cannot be read.
SICK = Machine(
    words=["reset:0", "unified:1", "prohibited:2", "forbidden:3", "recovery:4", "no memory:5"],
    count=6,
    aside=[handle_of(3, "Insufficient Permissions")],
    status=4,
    rows=[
        row(0, utilization__gpu="[GPU requires reset]"),
        row(1, memory__total="[N/A]", memory__used="[N/A]", mig__mode__current="[N/A]"),
        row(2, compute_mode="Prohibited"),
        row(4, gpu_recovery_action="Reset"),
        row(5, memory__total="[Unknown Error]", memory__used="[Unknown Error]"),
    ],
    topology=matrix(
        [0, 1, 2, 4, 5],
        "X PIX PIX PHB NODE",
        "PIX X PIX PXB PHB",
        "PIX PIX X PIX PXB",
        "PHB PXB PIX X PIX",
        "NODE PHB PXB PIX X",
    ),
    yaml=f"""{EACH}
gpus:
  - uuid: GPU-00000000-0000-0000-0000-000000000000
    pci_bus_id: 0000F000:0A:00.0
    unusable: GPU requires reset
  - uuid: GPU-00000000-0000-0000-0000-000000000001
    pci_bus_id: 0000F001:0A:00.0
    memory_total: unknown
    memory_used: unknown
    mig_mode: unknown
  - uuid: GPU-00000000-0000-0000-0000-000000000002
    pci_bus_id: 0000F002:0A:00.0
    compute_mode: Prohibited
    numa_node: 1
  - uuid: unknown
    pci_bus_id: 0000F003:0A:00.0
    unusable: Insufficient Permissions
    {UNKNOWN}
  - uuid: GPU-00000000-0000-0000-0000-000000000004
    pci_bus_id: 0000F004:0A:00.0
    unusable: recovery action is Reset
    numa_node: 2
  - uuid: GPU-00000000-0000-0000-0000-000000000005
    pci_bus_id: 0000F005:0A:00.0
    numa_node: 2
    memory_total: unknown
    memory_used: unknown
    unusable: Unknown Error
links:
  GPU0: X    PIX  PIX  N/A  PHB  NODE
  GPU1: PIX  X    PIX  N/A  PXB  PHB
  GPU2: PIX  PIX  X    N/A  PIX  PXB
  GPU3: N/A  N/A  N/A  X    N/A  N/A
  GPU4: PHB  PXB  PIX  N/A  X    PIX
  GPU5: NODE PHB  PXB  N/A  PIX  X
""",
)


@pytest.fixture
def nvidia_smi(tmp_path: Path, stub: Stub) -> Callable[[Machine], NvidiaSmi]:
    """Make backends that meet a program which says of a machine what nvidia-smi says."""

    def stand_in(machine: Machine) -> NvidiaSmi:
        answers, program, version = tmp_path / "answers.json", tmp_path / "nvidia-smi", tmp_path / "version"
        texts = {"topo -m": machine.topology, "--query-compute-apps=gpu_uuid,pid,used_memory": "", **machine.texts}
        said = {"aside": machine.aside, "rows": machine.rows, "texts": texts, "status": machine.status}
        answers.write_text(json.dumps(said))
        program.write_text(PROGRAM.format(python=sys.executable, answers=str(answers)))
        program.chmod(0o755)
        version.write_text("590.48.01\n")
        return NvidiaSmi(str(program), str(version), str(stub.bound), numa_node, topology=True, processes=True)

    return stand_in


def numa_node(bus_id: str) -> int:
    """Return what Linux would tell if it knew of these GPUs."""
    return int(bus_id[7]) // 2


def soon() -> float:
    return time.monotonic() + 60


@pytest.mark.parametrize("machine", [MIXED, SWITCHED, SICK], ids=["mixed", "switched", "sick"])
def test_records_and_links_of_a_machine_are_the_same_whoever_tells(
    stub: Stub,
    nvidia_smi: Callable[[Machine], NvidiaSmi],
    tmp_path: Path,
    machine: Machine,
) -> None:
    description = tmp_path / "machine.yaml"
    description.write_text(machine.yaml)
    for index in range(machine.count):
        (stub.bound / f"f00{index}:0a:00.0").mkdir(parents=True)
    nvml = stub(*machine.words, count=machine.count, numa_node=numa_node, topology=True, processes=True)
    expected = nvml.devices(soon()), nvml.links(soon())
    assert len(expected[0]) == machine.count
    others: list[Backend] = [
        nvidia_smi(machine),
        Simulated(str(description), topology=True, processes=True),
    ]
    for other in others:
        assert (other.devices(soon()), other.links(soon())) == expected


@pytest.mark.parametrize("name", ["nvml", "nvidia-smi", "auto", "simulated"])
@pytest.mark.parametrize("asked", [True, False])
def test_links_and_processes_are_known_if_asked_for_whoever_is_asked(
    stub: Stub,
    nvidia_smi: Callable[[Machine], NvidiaSmi],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    asked: bool,  # noqa: FBT001 - from the table above
) -> None:
    nvidia_smi(MIXED)
    monkeypatch.setenv("PATH", str(tmp_path))
    stub.behave(*(["driver"] if name == "auto" else MIXED.words), count=MIXED.count)  # so that auto goes on
    description = tmp_path / "machine.yaml"
    description.write_text(MIXED.yaml)
    simulate = str(description) if name == "simulated" else None
    backend = create(name, simulate, topology=asked, processes=asked)
    processes = [gpu.processes for gpu in backend.devices(soon())]
    assert [known is not None for known in processes] == [asked, asked, False, asked]
    assert bool(backend.links(soon())) is asked
    assert backend.name == ("nvidia-smi" if name == "auto" else name)


def test_container_without_devices_is_told_the_same_by_both(
    stub: Stub, nvidia_smi: Callable[[Machine], NvidiaSmi]
) -> None:
    (stub.bound / "f000:0a:00.0").mkdir(parents=True)
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    silent = Machine(words=["driver"], count=0, rows=[], topology="", yaml="", aside=[said], status=9)
    remedies = []
    for backend in (stub(*silent.words), nvidia_smi(silent)):
        with pytest.raises(DiscoveryError) as error:
            backend.devices(soon())
        remedies.append(str(error.value).rpartition(": ")[2])
    assert remedies[0] == remedies[1]
    assert "nvidia.com/gpu" in remedies[0]
