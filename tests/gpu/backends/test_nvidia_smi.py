import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from externalresource.errors import DiscoveryError
from externalresource.records import replace
from externalresource_gpu.backends import create, reasons
from externalresource_gpu.backends.nvidia_smi import listing, mig_listing
from externalresource_gpu.backends.nvidia_smi.backend import FIELDS, SINCE, NvidiaSmi
from externalresource_gpu.device import Device, Process

StandIn = Callable[[str], NvidiaSmi]

# Answers any query from a table with a header, as nvidia-smi would.
REPLAY = """
import csv
units = "nounits" not in " ".join(argv)
rows = list(csv.reader(open({table!r}), skipinitialspace=True))
column = {{name.partition(" [")[0]: number for number, name in enumerate(rows[0])}}
[wanted] = [word.partition("=")[2].split(",") for word in argv if word.startswith("--query-gpu=")]
for field in wanted:
    if field not in column:
        print('Field "' + field + '" is not a valid field to query.\\n')
        sys.exit(2)
def cell(row, field):
    value = row[column[field]]
    unit = rows[0][column[field]].partition(" [")[2].rstrip("]")
    return value if units or not unit else value.removesuffix(" " + unit)
for row in rows[1:]:
    print(", ".join(cell(row, field) for field in wanted))
"""


@pytest.fixture
def bound(tmp_path: Path) -> Path:
    """Where the driver would list the GPUs that it is bound to."""
    return tmp_path / "gpus"


@pytest.fixture
def stand_in(tmp_path: Path, bound: Path) -> StandIn:
    version = tmp_path / "version"
    version.write_text("595.71.05\n")

    def write(code: str) -> NvidiaSmi:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!{sys.executable} -SE\nimport os, sys, time\nargv = sys.argv[1:]\n{code}\n")
        program.chmod(0o755)
        return NvidiaSmi(str(program), str(version), str(bound))

    return write


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def row(**cells: str) -> str:
    """One line of the answer to FIELDS, of a healthy A100 unless said otherwise."""
    healthy = {
        "gpu_recovery_action": "None",
        "mig.mode.current": "Disabled",
        "index": "0",
        "uuid": f"GPU-{cells.get('index', '0')}",
        "pci.bus_id": "00000000:07:00.0",
        "memory.total": "40960",
        "memory.used": "17",
        "compute_mode": "Default",
        "utilization.gpu": "0",
        "temperature.gpu": "31",
        "name": "NVIDIA A100-SXM4-40GB",
    }
    return ", ".join((healthy | {name.replace("__", "."): cell for name, cell in cells.items()})[f] for f in FIELDS)


def parse(*lines: str) -> list[Device]:
    return listing.parse("\n".join(lines), FIELDS, lambda _: None)


def message(error: pytest.ExceptionInfo[DiscoveryError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# The table


def test_row_becomes_a_device() -> None:
    assert listing.parse(row(), FIELDS, {"00000000:07:00.0": 3}.get) == [
        Device(
            index=0,
            uuid="GPU-0",
            name="NVIDIA A100-SXM4-40GB",
            memory_total=40960,
            memory_used=17,
            pci_bus_id="00000000:07:00.0",
            compute_mode="Default",
            mig_mode="Disabled",
            numa_node=3,
        )
    ]


@pytest.mark.parametrize(
    "nothing", ["[N/A]", "[Not Supported]", "N/A", "", "[Requested functionality has been deprecated]"]
)
@pytest.mark.parametrize(
    ("field", "attribute"),
    [
        ("uuid", "uuid"),
        ("name", "name"),
        ("memory__total", "memory_total"),
        ("memory__used", "memory_used"),
        ("pci__bus_id", "pci_bus_id"),
        ("compute_mode", "compute_mode"),
        ("mig__mode__current", "mig_mode"),
    ],
)
def test_cell_without_a_value_is_unknown_and_the_gpu_healthy(field: str, attribute: str, nothing: str) -> None:
    [device] = parse(row(**{field: nothing}))
    assert getattr(device, attribute) is None
    assert device.unusable is None


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"utilization__gpu": "[GPU requires reset]"}, "GPU requires reset"),
        ({"temperature__gpu": "[Unknown Error]"}, "Unknown Error"),
        ({"memory__total": "[GPU is lost]", "uuid": "[GPU is lost]"}, "GPU is lost"),
        ({"uuid": "[Insufficient Permissions]"}, "Insufficient Permissions"),
        ({"name": "[Unknown Error]", "utilization__gpu": "[GPU is lost]"}, "GPU is lost, Unknown Error"),
        ({"memory__total": "[Insufficient Permissions]"}, "Insufficient Permissions"),
        ({"memory__total": "40960 MiB"}, "memory.total is '40960 MiB'"),
        ({"memory__used": "-1"}, "memory.used is '-1'"),
        ({"memory__used": "9" * 5000}, f"memory.used is '{'9' * 300}...'"),
        ({"compute_mode": "Prohibited"}, "compute mode is Prohibited"),
        ({"compute_mode": "Prohibited", "uuid": "[GPU is lost]"}, "GPU is lost, compute mode is Prohibited"),
        ({"gpu_recovery_action": "Reset"}, "recovery action is Reset"),
        ({"gpu_recovery_action": "Drain and Reset"}, "recovery action is Drain and Reset"),
        ({"gpu_recovery_action": "Reboot", "uuid": "[GPU is lost]"}, "GPU is lost, recovery action is Reboot"),
    ],
)
def test_error_in_a_cell_makes_this_gpu_unusable_and_no_other(cells: dict[str, str], reason: str) -> None:
    broken, healthy = parse(row(**cells), row(index="1"))
    assert (broken.index, broken.unusable) == (0, reason)
    assert (healthy.index, healthy.unusable) == (1, None)


@pytest.mark.parametrize("mode", ["Default", "Exclusive_Process", "Exclusive_Thread"])
def test_compute_mode_that_admits_a_process_is_kept(mode: str) -> None:
    [device] = parse(row(compute_mode=mode))
    assert (device.compute_mode, device.unusable) == (mode, None)


@pytest.mark.parametrize("action", ["None", "Drain P2P", "[N/A]"])
def test_recovery_action_that_leaves_the_gpu_usable_is_no_reason(action: str) -> None:
    assert parse(row(gpu_recovery_action=action))[0].unusable is None


def test_indices_keep_their_gaps_and_are_sorted() -> None:
    assert [device.index for device in parse(row(index="11"), row(index="2"), row(index="0"))] == [0, 2, 11]


def test_name_may_hold_a_comma() -> None:
    assert parse(row(name="Board, second edition"))[0].name == "Board, second edition"


def test_domain_of_old_drivers_is_widened() -> None:
    assert parse(row(pci__bus_id="0000:0a:00.0"))[0].pci_bus_id == "00000000:0A:00.0"


def test_blank_lines_and_warnings_are_no_gpus() -> None:
    assert len(parse("", row(), "   ", "WARNING: infoROM is corrupted at gpu 0008:00:00.0")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "Loading module nvidia-driver",
        ", ".join(FIELDS),
        row(index="-1"),
        row(index="²"),
        row(index="٣"),
        row(index="9" * 100),
        row(index="GPU-1"),
        "0",
        "Failed to initialize NVML: Unknown Error",
    ],
)
def test_line_that_is_no_gpu_is_an_error_that_quotes_it(line: str) -> None:
    with pytest.raises(DiscoveryError) as error:
        parse(row(), line)
    assert repr(line) in message(error)


@pytest.mark.parametrize(
    ("cells", "what"), [({"index": "0", "uuid": "GPU-2"}, "index 0"), ({"index": "1", "uuid": "GPU-1"}, "UUID GPU-1")]
)
def test_two_gpus_of_one_identity_are_an_error(cells: dict[str, str], what: str) -> None:
    with pytest.raises(DiscoveryError, match=f"nvidia-smi: two GPUs have the {what}"):
        parse(row(index="0", uuid="GPU-1"), row(**cells))


def test_gpus_without_a_uuid_are_told_apart_by_index() -> None:
    assert len(parse(row(index="0", uuid="[N/A]"), row(index="1", uuid="[N/A]"))) == 2


@pytest.mark.parametrize(
    ("line", "index"),
    [
        ("Unable to determine the device handle for GPU1: 0000:0F:00.0: GPU is lost", 1),
        ("Unable to determine the device handle for GPU 0000:0F:00.0: GPU is lost", 1),
        ("Unable to determine the device handle for GPU0000:0F:00.0: GPU is lost", 1),
        ("Unable to determine the device handle for GPU7: 0000:0F:00.0: GPU is lost", 7),
    ],
)
def test_lost_gpu_is_unusable_and_has_the_index_that_is_missing(line: str, index: int) -> None:
    devices = parse(line, row(index="0"), row(index="2"), row(index="3"))
    assert [device.index for device in devices] == sorted({0, 2, 3, index})
    assert [device for device in devices if device.unusable] == [
        Device(index, pci_bus_id="00000000:0F:00.0", unusable="GPU is lost")
    ]


def test_lost_gpus_fill_the_gaps_in_bus_order() -> None:
    lost = "Unable to determine the device handle for GPU {}: GPU is lost"
    devices = parse(lost.format("0000:47:00.0"), lost.format("0000:0F:00.0"), row(index="0"), row(index="3"))
    assert [(device.index, device.pci_bus_id) for device in devices[1:3]] == [
        (1, "00000000:0F:00.0"),
        (2, "00000000:47:00.0"),
    ]


def test_lost_gpu_without_an_index_never_has_that_of_another() -> None:
    lost = "Unable to determine the device handle for GPU{}: GPU is lost"
    devices = parse(lost.format(" 0000:07:00.0"), lost.format("0: 0000:0F:00.0"), row(index="2"))
    assert [(device.index, device.pci_bus_id) for device in devices[:2]] == [
        (0, "00000000:0F:00.0"),
        (1, "00000000:07:00.0"),
    ]


def test_row_without_an_index_is_a_lost_gpu() -> None:
    devices = parse(row(index="0"), row(index="[Unknown Error]", pci__bus_id="00000000:0F:00.0"), row(index="2"))
    assert devices[1] == Device(1, pci_bus_id="00000000:0F:00.0", unusable="Unknown Error")


# Through the program


def table(tmp_path: Path, fields: tuple[str, ...], *rows: str) -> str:
    """A recording made by hand, with units as nvidia-smi writes them."""
    path = tmp_path / "table.csv"
    units = {field: f"{field} [MiB]" for field in ("memory.total", "memory.used")}
    path.write_text("\n".join([", ".join(units.get(field, field) for field in fields), *rows]) + "\n")
    return REPLAY.format(table=str(path))


@pytest.mark.parametrize(
    "unknown",
    [
        *([field] for field in FIELDS if field != "index"),
        ["gpu_recovery_action", "mig.mode.current"],
        [field for field in FIELDS if field != "index"],
    ],
)
def test_driver_that_does_not_know_a_field_is_asked_again_without_it(
    stand_in: StandIn, tmp_path: Path, unknown: list[str]
) -> None:
    fields = tuple(field for field in FIELDS if field not in unknown)
    cells = dict(zip(FIELDS, row().split(", "), strict=True))
    [device] = stand_in(table(tmp_path, fields, ", ".join(cells[field] for field in fields))).devices(soon())
    assert (device.index, device.unusable) == (0, None)
    known = {"name": device.name, "mig.mode.current": device.mig_mode, "uuid": device.uuid}
    assert known == {field: None if field in unknown else cells[field] for field in known}


@pytest.mark.parametrize(
    ("version", "left_out"),
    [
        ("595.71.05\n", set()),
        ("570.86.10\n", set()),
        ("565.57.01\n", {"gpu_recovery_action"}),
        ("535.161.08\n", {"gpu_recovery_action"}),
        ("418.56\n", set(SINCE)),
        ("unreadable", {"gpu_recovery_action"}),
        (None, {"gpu_recovery_action"}),
    ],
)
def test_driver_is_asked_at_once_for_what_it_knows(tmp_path: Path, version: str | None, left_out: set[str]) -> None:
    program, file = tmp_path / "nvidia-smi", tmp_path / "version"
    program.write_text('#!/bin/sh\necho "asked: $1"\nexit 1\n')
    program.chmod(0o755)
    if version is not None:
        file.write_text(version)
    with pytest.raises(DiscoveryError) as error:
        NvidiaSmi(str(program), str(file)).devices(soon())
    asked = message(error).partition("--query-gpu=")[2].partition(":")[0].split(",")
    assert set(FIELDS) - set(asked) == left_out


def test_driver_that_does_not_know_the_index_fails_with_what_it_said(stand_in: StandIn, tmp_path: Path) -> None:
    with pytest.raises(DiscoveryError) as error:
        stand_in(table(tmp_path, ("uuid", "pci.bus_id"), "GPU-1, 00000000:07:00.0")).devices(soon())
    assert 'Field "index" is not a valid field to query.' in message(error)


def test_unified_memory_is_unknown_and_the_gpu_healthy(stand_in: StandIn, tmp_path: Path) -> None:
    gb10 = "None, [N/A], 0, GPU-1, 0000000F:01:00.0, [N/A], [N/A], Default, 0, 41, NVIDIA GB10"
    [device] = stand_in(table(tmp_path, FIELDS, gb10)).devices(soon())
    assert (device.memory_total, device.memory_used, device.unusable) == (None, None, None)
    assert device.pci_bus_id == "0000000F:01:00.0"


# What else is asked

LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1)
  MIG 3g.20gb     Device  0: (UUID: MIG-a)
  MIG 1g.5gb      Device  3: (UUID: MIG-b)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-2)
"""
DETAILED = """\
<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log><gpu id="00000000:0F:00.0"><uuid>GPU-1</uuid><mig_devices>
  <mig_device><index>0</index><gpu_instance_id>2</gpu_instance_id><compute_instance_id>0</compute_instance_id>
    <fb_memory_usage><total>19968 MiB</total><used>12 MiB</used></fb_memory_usage></mig_device>
  <mig_device><index>3</index><gpu_instance_id>9</gpu_instance_id><compute_instance_id>0</compute_instance_id>
    <fb_memory_usage><total>4864 MiB</total><used>3 MiB</used></fb_memory_usage></mig_device>
</mig_devices></gpu></nvidia_smi_log>
"""
MATRIX = "\t\033[4mGPU0\tGPU1\tCPU Affinity\033[0m\nGPU0\t X \tNV12\t0-23\nGPU1\tNV12\t X \t0-23\n"
DIVIDED = {"index": "1", "pci__bus_id": "00000000:0F:00.0", "mig__mode__current": "Enabled"}
ROWS = f"{row()}\n{row(**DIVIDED)}\n{row(index='2')}\n"
INSTANCES = (
    Device(
        index=1,
        uuid="MIG-a",
        name="NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        memory_total=19968,
        memory_used=12,
        pci_bus_id="00000000:0F:00.0",
        mig_profile="3g.20gb",
        mig_index=0,
        gpu_instance=2,
        compute_instance=0,
        parent_uuid="GPU-1",
    ),
    Device(
        index=1,
        uuid="MIG-b",
        name="NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        memory_total=4864,
        memory_used=3,
        pci_bus_id="00000000:0F:00.0",
        mig_profile="1g.5gb",
        mig_index=3,
        gpu_instance=9,
        compute_instance=0,
        parent_uuid="GPU-1",
    ),
)

# What nvidia-smi says to each question; "!" and code where it does something else.
ANSWERS = {
    "--query-gpu": ROWS,
    "-L": LISTED,
    "-q": DETAILED,
    "topo": MATRIX,
    "--query-compute-apps": "GPU-1, 4711, 300\n",
}


def host(**other: str) -> str:
    """A machine that answers all that is asked; the questions without their dashes, and what is said or done then."""
    names = {name.lstrip("-").replace("-", "_"): name for name in ANSWERS}
    answers = ANSWERS | {names[name]: answer for name, answer in other.items()}
    return f"""
question = argv[0].partition("=")[0]
with open(sys.argv[0] + ".asked", "a") as file:
    file.write(question + "\\n")
answer = {answers!r}[question]
exec(answer[1:]) if answer.startswith("!") else sys.stdout.write(answer)
"""


def asking(backend: NvidiaSmi, tmp_path: Path, *, topology: bool = False, processes: bool = False) -> NvidiaSmi:
    """The same backend, which asks for more."""
    program, version, bound = (str(tmp_path / name) for name in ("nvidia-smi", "version", "gpus"))
    return NvidiaSmi(program, version, bound, topology=topology, processes=processes)


def asked(tmp_path: Path) -> list[str]:
    return sorted((tmp_path / "nvidia-smi.asked").read_text().split())


def test_instances_hang_below_their_gpu(stand_in: StandIn) -> None:
    found = [replace(gpu, numa_node=None) for gpu in stand_in(host()).devices(soon())]
    assert [gpu.unusable for gpu in found] == [None, None, None]
    assert [gpu.instances for gpu in found] == [(), INSTANCES, ()]


def test_instance_has_the_numa_node_of_its_gpu() -> None:
    [gpu] = mig_listing.attach([Device(1, "GPU-1", numa_node=3, mig_mode="Enabled")], LISTED, DETAILED)
    assert {instance.numa_node for instance in gpu.instances} == {3}


def test_without_mig_nobody_asks_for_instances(stand_in: StandIn, tmp_path: Path) -> None:
    assert len(stand_in(host(query_gpu=row())).devices(soon())) == 1
    assert asked(tmp_path) == ["--query-gpu"]


def test_links_and_processes_are_asked_for_only_if_wanted(stand_in: StandIn, tmp_path: Path) -> None:
    backend = stand_in(host(query_gpu=row()))
    [device] = backend.devices(soon())
    assert (device.processes, backend.links(soon())) == (None, {})
    backend = asking(backend, tmp_path, topology=True)
    assert len(backend.devices(soon())) == len(backend.links(soon())) == 1
    assert asked(tmp_path) == ["--query-gpu", "--query-gpu", "topo"]


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "No devices were found\n",
        "<?xml version='1.0' ?>\n<!DOCTYPE nvidia_smi_log [<!ENTITY a 'b'>]><nvidia_smi_log/>",
        "<nvidia_smi_log><gpu><uuid>GPU-1</uuid>",
        f"!print({DETAILED!r}); sys.exit(255)",
        "!os.kill(os.getpid(), 11)",
    ],
)
def test_instances_without_their_xml_have_no_ids_and_no_memory(stand_in: StandIn, xml: str) -> None:
    found = stand_in(host(q=xml)).devices(soon())
    assert [gpu.unusable for gpu in found] == [None, None, None]
    assert [replace(instance, numa_node=None) for instance in found[1].instances] == [
        replace(instance, memory_total=None, memory_used=None, gpu_instance=None, compute_instance=None)
        for instance in INSTANCES
    ]


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ("!print('Failed to initialize NVML: Unknown Error'); sys.exit(255)", "exit 255"),
        (f"!print({LISTED!r}); sys.exit(255)", "exit 255"),
        ("!os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("", "does not list GPU 1"),
        ("GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0)\n", "does not list GPU 1"),
        (LISTED.replace("GPU-1", "GPU-9"), "does not list GPU 1"),
        (LISTED.replace("GPU 1:", "GPU 1 is gone:"), "does not list GPU 1"),
        (LISTED.replace("Device  3", "Slice 3"), "'MIG 1g.5gb Slice 3: (UUID: MIG-b)'"),
        (LISTED.replace("Device  3", "Device  0"), "twice"),
        (LISTED.replace("MIG-b", "MIG-a"), "twice"),
    ],
)
def test_gpu_whose_instances_are_not_known_is_unusable_and_no_other(
    stand_in: StandIn, listed: str, reason: str
) -> None:
    found = stand_in(host(L=listed)).devices(soon())
    assert [gpu.instances for gpu in found] == [(), (), ()]
    assert (found[0].unusable, found[2].unusable) == (None, None)
    assert found[1].unusable is not None
    assert found[1].unusable.startswith("its MIG instances cannot be listed: ")
    assert reason in found[1].unusable


def test_reason_that_a_gpu_has_itself_comes_before_that_of_its_instances(stand_in: StandIn) -> None:
    rows = row(**DIVIDED, gpu_recovery_action="Reset")
    [gpu] = stand_in(host(query_gpu=rows, L="!sys.exit(1)")).devices(soon())
    assert gpu.unusable == "recovery action is Reset"


def test_gpu_in_mig_mode_may_have_no_instances(stand_in: StandIn) -> None:
    [gpu] = stand_in(host(query_gpu=row(**DIVIDED), L="GPU 1: Board (UUID: GPU-1)\n")).devices(soon())
    assert (gpu.instances, gpu.unusable) == ((), None)


def test_lost_gpu_does_not_hide_the_instances_of_others(stand_in: StandIn) -> None:
    lost = "Unable to determine the device handle for GPU0: 0000:07:00.0: GPU is lost\n"
    rows, listed = f"{lost}{row(**DIVIDED)}\n", lost + LISTED.partition("\n")[2]
    code = host(query_gpu=rows, L=f"!print({listed!r}); sys.exit(15)", q=f"!print({lost + DETAILED!r}); sys.exit(15)")
    found = stand_in(code).devices(soon())
    assert [gpu.unusable for gpu in found] == ["GPU is lost", None]
    assert [instance.memory_total for instance in found[1].instances] == [19968, 4864]


def test_container_that_may_not_ask_for_a_gpus_memory_may_use_its_instances(stand_in: StandIn) -> None:
    forbidden = {"memory__total": "[Insufficient Permissions]", "memory__used": "[Insufficient Permissions]"}
    [gpu] = stand_in(host(query_gpu=row(**DIVIDED, **forbidden))).devices(soon())
    assert (gpu.memory_total, gpu.memory_used, gpu.unusable) == (None, None, None)
    assert [instance.uuid for instance in gpu.instances] == ["MIG-a", "MIG-b"]


def test_gpu_in_mig_mode_that_requires_a_reset_is_unusable(stand_in: StandIn) -> None:
    [gpu] = stand_in(host(query_gpu=row(**DIVIDED, temperature__gpu="[GPU requires reset]"))).devices(soon())
    assert gpu.unusable == "GPU requires reset"


@pytest.mark.parametrize("question", ["L", "q", "query_compute_apps"])
def test_each_question_is_under_the_deadline(stand_in: StandIn, tmp_path: Path, question: str) -> None:
    backend = asking(stand_in(host(**{question: "!time.sleep(600)"})), tmp_path, processes=True)
    with pytest.raises(DiscoveryError, match="did not answer"):
        backend.devices(soon(1))


def test_matrix_is_under_the_deadline(stand_in: StandIn, tmp_path: Path) -> None:
    backend = asking(stand_in(host(topo="!time.sleep(600)")), tmp_path, topology=True)
    assert len(backend.devices(soon())) == 3
    with pytest.raises(DiscoveryError, match="did not answer"):
        backend.links(soon(0.1))


# Says that it runs, and answers when the others do.
TOGETHER = """!
for name in {others}:
    open(sys.argv[0] + ".runs" + question, "w").close()
    while not os.path.exists(sys.argv[0] + ".runs" + name):
        time.sleep(0.01)
sys.stdout.write({answer!r})
"""


@pytest.mark.parametrize("together", [("-L", "-q"), ("--query-gpu", "topo", "--query-compute-apps")])
def test_questions_are_asked_at_once(stand_in: StandIn, tmp_path: Path, together: tuple[str, ...]) -> None:
    code = host(
        **{
            name.lstrip("-").replace("-", "_"): TOGETHER.format(others=together, answer=ANSWERS[name])
            for name in together
        }
    )
    backend = asking(stand_in(code), tmp_path, topology=True, processes=True)
    backend.start()
    assert len(backend.devices(soon())[1].instances) == 2
    assert backend.links(soon()) == {(0, 1): "NV12"}


def test_processes_are_those_of_their_gpu_and_of_no_instance(stand_in: StandIn, tmp_path: Path) -> None:
    found = asking(stand_in(host()), tmp_path, processes=True).devices(soon())
    assert [gpu.processes for gpu in found] == [(), (Process(4711, 300),), ()]
    assert [instance.processes for instance in found[1].instances] == [None, None]


@pytest.mark.parametrize("answer", ["!sys.exit(255)", "!os.kill(os.getpid(), 11)", "[Not Supported]\n"])
def test_processes_that_are_not_told_are_unknown(stand_in: StandIn, tmp_path: Path, answer: str) -> None:
    found = asking(stand_in(host(query_compute_apps=answer)), tmp_path, processes=True).devices(soon())
    assert [(gpu.processes, gpu.unusable) for gpu in found] == [(None, None)] * 3


def test_links_are_known_once_per_look(stand_in: StandIn, tmp_path: Path) -> None:
    backend = asking(stand_in(host()), tmp_path, topology=True)
    for _ in range(2):
        backend.devices(soon())
        assert backend.links(soon()) == {(0, 1): "NV12"}
        assert backend.links(soon()) == {}


@pytest.mark.parametrize(
    "answer", [f"!print({MATRIX!r}); sys.exit(255)", "!os.kill(os.getpid(), 11)", "!print('Usage'); sys.exit(255)", ""]
)
def test_links_that_are_not_told_are_none(stand_in: StandIn, tmp_path: Path, answer: str) -> None:
    backend = asking(stand_in(host(topo=answer)), tmp_path, topology=True)
    assert len(backend.devices(soon())) == 3
    assert backend.links(soon()) == {}


def sleeper(pid: Path) -> str:
    return f"!open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"


def after(pid: Path, code: str) -> str:
    """Does so when the sleeper runs."""
    path = str(pid)
    return f"!while not (os.path.exists({path!r}) and open({path!r}).read()): time.sleep(0.01)\n{code}"


def lives(pid: Path) -> bool:
    number = pid.read_text() if pid.exists() else ""
    return number != "" and Path(f"/proc/{number}").exists()


def test_what_was_asked_beside_a_failure_does_not_live_on(stand_in: StandIn, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = host(topo=sleeper(pid), query_gpu=after(pid, "sys.exit(9)"))
    with pytest.raises(DiscoveryError, match="exit 9"):
        asking(stand_in(code), tmp_path, topology=True).devices(soon())
    assert not lives(pid)


def test_what_was_asked_beside_a_hang_does_not_live_on(stand_in: StandIn, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    backend = stand_in(host(L="!time.sleep(600)", q=sleeper(pid)))
    with pytest.raises(DiscoveryError, match="did not answer"):
        backend.devices(soon(2))
    assert not lives(pid)


def test_question_that_is_asked_anew_does_not_live_on(stand_in: StandIn, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    backend = asking(
        stand_in(host(topo=sleeper(pid), query_gpu=after(pid, f"print({row()!r})"))), tmp_path, topology=True
    )
    backend.devices(soon())
    first = Path(f"/proc/{pid.read_text()}/")
    assert first.exists()
    backend.start()
    assert not first.exists()
    with pytest.raises(DiscoveryError):
        backend.links(soon(0))


# How it fails


@pytest.mark.parametrize(
    ("status", "said", "todo"),
    [
        (4, "Failed to initialize NVML: Insufficient Permissions", "SELinux"),
        (
            6,
            "Unable to determine the device handle for GPU0: 0000:01:00.0: Unknown Error\\nNo devices were found",
            "Xid",
        ),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "modprobe nvidia"),
        (12, "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.", "--gpus"),
        (15, "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system", "reboot"),
        (17, "Failed to initialize NVML: GPU access blocked by the operating system", "WSL"),
        (18, "Failed to initialize NVML: Driver/library version mismatch\\nNVML library version: 535.161", "reload"),
        (255, "Failed to initialize NVML: Unknown Error", "recreated"),
        (77, "Something new", "dmesg"),
    ],
)
def test_failure_tells_its_exit_its_words_and_a_remedy(stand_in: StandIn, status: int, said: str, todo: str) -> None:
    with pytest.raises(DiscoveryError) as error:
        stand_in(f'print("""{said}"""); sys.exit({status})').devices(soon())
    text = message(error)
    assert f"exit {status}" in text
    assert " ".join(said.partition("\\n")[0].split()) in text
    assert todo in text


def test_each_failure_has_a_remedy_of_its_own() -> None:
    codes = [4, 6, 9, 12, 15, 16, 17, 18, 999, 77]
    assert len({reasons.advice(code) for code in codes}) == len(codes)


def test_message_on_stderr_is_told_where_stdout_is_silent(stand_in: StandIn) -> None:
    with pytest.raises(DiscoveryError, match=r"exit 3.*cannot open shared object file"):
        stand_in("sys.stderr.write('libx.so: cannot open shared object file'); sys.exit(3)").devices(soon())


@pytest.mark.parametrize("status", [0, 1])
def test_silence_is_an_error(stand_in: StandIn, status: int) -> None:
    with pytest.raises(DiscoveryError, match=rf"gave no reason \(exit {status}\)"):
        stand_in(f"sys.exit({status})").devices(soon())


def test_corrupted_inforom_is_a_warning(stand_in: StandIn) -> None:
    code = f'print("""{row()}\nWARNING: infoROM is corrupted at gpu 0008:00:00.0"""); sys.exit(14)'
    assert [device.index for device in stand_in(code).devices(soon())] == [0]


def test_lost_gpu_hides_no_other_whatever_the_exit(stand_in: StandIn) -> None:
    lost = "Unable to determine the device handle for GPU1: 0000:0F:00.0: GPU is lost"
    devices = stand_in(f'print("""{lost}\n{row()}\n{row(index="2")}"""); sys.exit(15)').devices(soon())
    assert [device.unusable for device in devices] == [None, "GPU is lost", None]


# An old driver: it lists nothing if a GPU is lost, but single GPUs if it is asked for them.
OLD_DRIVER = """
lost = "Unable to determine the device handle for GPU 0000:0F:00.0: GPU is lost.  Reboot the system"
rows = {rows!r}
if not argv[0].startswith("--id="):
    print(lost); sys.exit(15)
row = rows[argv[0].partition("=")[2]]
if row is None:
    print(lost); sys.exit(15)
exec(row[1:]) if row.startswith("!") else print(row)
"""
FIRST, THIRD = row(index="0", pci__bus_id="00000000:07:00.0"), row(index="2", pci__bus_id="00000000:47:00.0")


@pytest.mark.parametrize(
    ("third", "reason"),
    [
        (THIRD, None),
        (row(index="2", temperature__gpu="[Unknown Error]"), "Unknown Error"),
        ("!print('Driver Not Loaded'); sys.exit(9)", "nvidia-smi failed (exit 9): Driver Not Loaded"),
        ("!os.kill(os.getpid(), 11)", "nvidia-smi was ended by SIGSEGV"),
        ("No devices were found", "nvidia-smi does not list it"),
    ],
)
def test_driver_that_gives_up_at_a_lost_gpu_is_asked_for_each(
    stand_in: StandIn, bound: Path, third: str, reason: str | None
) -> None:
    rows = {"0000:07:00.0": FIRST, "0000:0f:00.0": None, "0000:47:00.0": third}
    for bus_id in rows:
        (bound / bus_id).mkdir(parents=True)
    found = stand_in(OLD_DRIVER.format(rows=rows)).devices(soon())
    assert [(gpu.index, gpu.uuid) for gpu in found[:2]] == [(0, "GPU-0"), (1, None)]
    assert (found[1].pci_bus_id, found[1].unusable) == ("00000000:0F:00.0", "GPU is lost")
    assert (found[2].index, found[0].unusable) == (2, None)
    assert (found[2].unusable or "").startswith(reason or "")
    assert (found[2].unusable is None) == (reason is None)


def test_driver_that_gives_up_at_a_lost_gpu_whatever_it_is_asked_fails(stand_in: StandIn, bound: Path) -> None:
    rows = {"0000:07:00.0": None, "0000:0f:00.0": None}
    for bus_id in rows:
        (bound / bus_id).mkdir(parents=True)
    with pytest.raises(DiscoveryError, match=r"exit 15.*GPU is lost.*reboot the machine"):
        stand_in(OLD_DRIVER.format(rows=rows)).devices(soon())


def test_rows_before_an_unexplained_failure_are_not_trusted(stand_in: StandIn) -> None:
    with pytest.raises(DiscoveryError, match="exit 255"):
        stand_in(f'print("{row()}"); sys.exit(255)').devices(soon())


def test_rows_before_a_crash_are_not_trusted(stand_in: StandIn) -> None:
    code = f'print("{row()}", flush=True); os.kill(os.getpid(), 11)'
    with pytest.raises(DiscoveryError, match="nvidia-smi was ended by SIGSEGV"):
        stand_in(code).devices(soon())


def test_hang_ends_at_the_deadline_and_says_after_how_long(stand_in: StandIn) -> None:
    with pytest.raises(DiscoveryError, match=r"nvidia-smi did not answer within \d+\.\d s: the driver hangs"):
        stand_in("time.sleep(600)").devices(soon(0.3))


def test_status_that_is_lost_is_an_error(stand_in: StandIn) -> None:
    backend = stand_in(f'print("{row()}")')
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # now the kernel collects whoever ends
    try:
        with pytest.raises(DiscoveryError, match="nvidia-smi ended, and how is unknown"):
            backend.devices(soon())
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_second_query_is_under_the_same_deadline(stand_in: StandIn) -> None:
    code = """
if "mig" in argv[0]:
    print('Field "mig.mode.current" is not a valid field to query.'); sys.exit(2)
time.sleep(600)
"""
    with pytest.raises(DiscoveryError, match="did not answer"):
        stand_in(code).devices(soon(1.5))


def test_flood_on_both_streams_is_no_hang_and_is_quoted_short(stand_in: StandIn) -> None:
    with pytest.raises(DiscoveryError) as error:
        stand_in("sys.stderr.write('e' * 1_000_000); print('o' * 1_000_000); sys.exit(1)").devices(soon())
    assert len(message(error)) < 1000


def test_missing_program_is_an_error_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    backend = create("nvidia-smi")
    backend.start()
    with pytest.raises(DiscoveryError, match="nvidia-smi was not found on PATH"):
        backend.devices(soon())


def test_program_that_may_not_be_executed_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(DiscoveryError, match=r"nvidia-smi: '.*/nvidia-smi' cannot be run: Permission denied"):
        NvidiaSmi(str(program)).devices(soon())


def test_program_is_found_on_the_path(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(table(tmp_path, FIELDS, row()))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(create("nvidia-smi").devices(soon())) == 1


def test_host_without_gpus_has_none(stand_in: StandIn) -> None:
    assert stand_in("print('No devices were found'); sys.exit(6)").devices(soon()) == []


def test_gpu_that_only_the_driver_knows_is_not_no_gpu(stand_in: StandIn, bound: Path) -> None:
    (bound / "0000:01:00.0").mkdir(parents=True)
    with pytest.raises(DiscoveryError, match=r"finds no GPU, but the driver is bound to 1 \(0000:01:00.0\)"):
        stand_in("print('No devices were found'); sys.exit(6)").devices(soon())


def test_each_query_is_a_new_one(stand_in: StandIn, tmp_path: Path) -> None:
    backend = stand_in(f'print("{row()}")')
    backend.start()
    assert len(backend.devices(soon())) == 1
    stand_in(f'print("""{row()}\n{row(index="1")}""")')
    assert len(backend.devices(soon())) == 2


@pytest.mark.parametrize(
    "broken",
    [
        f"Unable to determine the device handle for GPU1: 0000:0F:00.0: GPU is lost\n{row()}",
        f"{row()}\n{row(index='1', temperature__gpu='[GPU requires reset]', memory__used='0')}",
        f"{row()}\n{row(index='1', uuid='[Insufficient Permissions]')}",
        f"{row()}\n{row(index='1', memory__total='[Unknown Error]')}",
        f"{row()}\n{row(index='[Unknown Error]')}",
    ],
)
def test_gpu_is_healthy_again_when_a_later_look_says_so(stand_in: StandIn, broken: str) -> None:
    backend = stand_in(f'print("""{broken}""")')
    assert [(device.index, device.unusable is None) for device in backend.devices(soon())] == [(0, True), (1, False)]
    stand_in(f'print("""{row()}\n{row(index="1")}""")')
    assert [(device.index, device.unusable) for device in backend.devices(soon())] == [(0, None), (1, None)]
