"""What nvidia-smi is asked beside its table: instances, links, processes; all of it at once."""

from pathlib import Path

import pytest

from externalresource.errors import DiscoveryError
from externalresource.records import replace
from externalresource_gpu.backends.nvidia_smi import mig_listing
from externalresource_gpu.backends.nvidia_smi.backend import NvidiaSmi
from externalresource_gpu.device import Device, Process
from tests.support.backends import soon
from tests.support.nvidia_smi import StandIn, row

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
