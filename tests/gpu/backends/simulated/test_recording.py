"""What is written of a machine describes it, and names neither it nor anybody on it."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from externalresource.records import replace
from externalresource_gpu.backends.simulated import made_up
from externalresource_gpu.backends.simulated.backend import Simulated
from externalresource_gpu.backends.simulated.recording import render
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device, Process

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
REAL = "b8ea3855-276c-c9cb-b366-c6fa655957c5"
OTHER = "4200ccc0-2667-d4cb-9137-f932c716232a"
PID_MAX_LIMIT = 4194304


def read(text: str, folder: Path) -> tuple[list[Device], Links]:
    (folder / "recorded.yaml").write_text(text, encoding="utf-8")
    backend = Simulated(str(folder / "recorded.yaml"), topology=True, processes=True)
    return backend.devices(time.monotonic()), backend.links(time.monotonic())


def anonymous(devices: list[Device]) -> list[Device]:
    """Return the devices without what a recording masks: which UUIDs, and which pids."""

    def shape(uuid: str | None) -> str | None:
        return uuid and UUID.sub("UUID", uuid)

    return [
        replace(
            device,
            uuid=shape(device.uuid),
            parent_uuid=shape(device.parent_uuid),
            processes=device.processes and tuple(replace(process, pid=1) for process in device.processes),
            instances=tuple(anonymous(list(device.instances))),
        )
        for device in devices
    ]


def uuids(devices: list[Device]) -> list[str]:
    return [known.uuid or "" for device in devices for known in (device, *device.instances)]


@pytest.mark.parametrize("machine", [name for name in made_up.names() if not name.startswith("driver-")])
def test_recording_of_a_simulated_machine_is_that_machine(machine: str, tmp_path: Path) -> None:
    backend = Simulated(machine, topology=True, processes=True)
    devices = backend.devices(time.monotonic())
    links = backend.links(time.monotonic())
    recorded, recorded_links = read(render(devices, links), tmp_path)
    assert anonymous(recorded) == anonymous(devices)
    assert recorded_links == links


def test_recording_of_a_recording_is_the_same_file(tmp_path: Path) -> None:
    once = render(*read(render([Device(0, uuid=f"GPU-{REAL}", name="NVIDIA A10")], {}), tmp_path))
    assert render(*read(once, tmp_path)) == once


def test_each_uuid_is_replaced_by_one_of_the_same_shape(tmp_path: Path) -> None:
    gpu = Device(0, uuid=f"GPU-{REAL}", mig_mode="Enabled", unusable=f"GPU-{REAL} is lost")
    old, new = f"MIG-GPU-{REAL}/7/0", f"MIG-{OTHER}"
    instances = tuple(
        Device(0, uuid=uuid, mig_index=number, parent_uuid=gpu.uuid) for number, uuid in enumerate([old, new])
    )
    jetson = Device(1, uuid=OTHER.upper())
    text = render([replace(gpu, instances=instances), jetson], {})
    assert REAL not in text.lower()
    assert OTHER not in text.lower()
    (recorded, recorded_jetson), _ = read(text, tmp_path)
    real, other = UUID.findall(recorded.uuid or "")[0], recorded_jetson.uuid
    assert recorded.unusable == f"GPU-{real} is lost"
    assert [instance.uuid for instance in recorded.instances] == [f"MIG-GPU-{real}/7/0", f"MIG-{other}"]
    assert real != other
    assert UUID.fullmatch(other or "")


def test_uuid_that_could_not_be_masked_as_a_whole_is_left_out(tmp_path: Path) -> None:
    text = render([Device(0, uuid=f"GPU-{REAL}-of-alice"), Device(1, uuid="GPU-alice")], {})
    assert "alice" not in text
    assert all(UUID.search(uuid) for uuid in uuids(read(text, tmp_path)[0]))


def test_unknown_uuid_stays_unknown(tmp_path: Path) -> None:
    devices = [Device(0, mig_mode="Enabled", instances=(Device(0, mig_index=0),)), Device(1, unusable="GPU is lost")]
    assert read(render(devices, {}), tmp_path)[0] == devices


def test_made_up_uuids_of_two_machines_differ_and_tell_nothing_of_the_real_ones() -> None:
    def recorded(uuid: str, name: str) -> str:
        return render([Device(0, uuid=uuid, name=name)], {})

    assert recorded(f"GPU-{REAL}", "A10") == recorded(f"GPU-{OTHER}", "A10")
    assert UUID.findall(recorded(f"GPU-{REAL}", "A10")) != UUID.findall(recorded(f"GPU-{REAL}", "A16"))


def test_pids_are_counted_anew_from_where_linux_has_none(tmp_path: Path) -> None:
    shared, other = Process(1234, 253), Process(77)
    devices = [Device(0, processes=(shared, other)), Device(1, processes=(shared,)), Device(2, processes=()), Device(3)]
    text = render(devices, {})
    assert "1234" not in text
    assert "77" not in re.sub(UUID, "", text)
    recorded, _ = read(text, tmp_path)
    first, second = PID_MAX_LIMIT + 1, PID_MAX_LIMIT + 2
    assert [device.processes for device in recorded] == [
        (Process(first, 253), Process(second)),
        (Process(first, 253),),
        (),
        None,
    ]


def test_host_without_gpus_is_recorded(tmp_path: Path) -> None:
    assert read(render([], {}), tmp_path) == ([], {})


def test_links_are_drawn_as_a_person_would() -> None:
    devices = [Device(0), Device(1), Device(10)]
    assert render(devices, {(0, 1): "NV12", (0, 10): "SYS", (1, 10): "SYS"}).endswith(
        "links:\n"
        "  GPU0:   X   NV12 SYS\n"
        "  GPU1:  NV12  X   SYS\n"
        "  GPU10: SYS  SYS   X\n"
    )  # fmt: skip
    assert render(devices, {(0, 1): "SYS", (0, 10): "SYS", (1, 10): "SYS"}).endswith("links: SYS\n")
    assert "links" not in render(devices, {})


@pytest.mark.parametrize(
    "said",
    [
        "unknown",
        "a: b",
        "a #b",
        "- a",
        " a ",
        "a:",
        "null",
        "[a]",
        "{a: b}",
        "é\n\t\0",
        "\"\\'",
        "\U0001f600",
        "\ud800",
        "?",
    ],
)
def test_any_text_is_read_back(said: str, tmp_path: Path) -> None:
    devices = [Device(0, uuid=f"GPU-{REAL}", name=said, unusable=said)]
    [recorded], _ = read(render(devices, {}), tmp_path)
    assert (recorded.name, recorded.unusable) == (said, said)


def test_number_that_nobody_can_mean_is_left_out(tmp_path: Path) -> None:
    most = 10**18 - 1
    [recorded], _ = read(render([Device(0, memory_total=most, memory_used=most + 1)], {}), tmp_path)
    assert (recorded.memory_total, recorded.memory_used) == (most, None)


# Each record that a backend could give.

text = st.text(min_size=1, max_size=12)
number = st.none() | st.integers(0, 1 << 40)
small = st.none() | st.integers(0, 9)
uuid_texts = st.uuids().map(str)


@st.composite
def instances(draw: st.DrawFn, gpu: Device) -> tuple[Device, ...]:
    numbers = draw(st.lists(st.integers(0, 6), unique=True, max_size=3))
    found = []
    for place, mig_index in enumerate(sorted(numbers)):
        profile = draw(st.none() | st.sampled_from(["1g.5gb", "1c.3g.20gb", "1g.24gb+me.all", "1g.24gb-me"]))
        found.append(
            Device(
                gpu.index,
                uuid=f"MIG-{draw(uuid_texts)}",
                name=gpu.name and " ".join(filter(None, [gpu.name, "MIG", profile])),
                memory_total=draw(number),
                memory_used=draw(number),
                pci_bus_id=gpu.pci_bus_id,
                numa_node=gpu.numa_node,
                unusable=draw(st.none() | text),
                mig_profile=profile,
                mig_index=mig_index,
                gpu_instance=draw(st.none() | st.just(place)),
                compute_instance=draw(small),
                parent_uuid=gpu.uuid,
            )
        )
    return tuple(found)


@st.composite
def hosts(draw: st.DrawFn) -> tuple[list[Device], Links]:
    devices = []
    for index in sorted(draw(st.lists(st.integers(0, 20), unique=True, max_size=4))):
        gpu = Device(
            index,
            uuid=draw(st.none() | uuid_texts.map("GPU-{}".format) | uuid_texts),
            name=draw(st.none() | text),
            memory_total=draw(number),
            memory_used=draw(number),
            pci_bus_id=draw(st.none() | st.sampled_from(["00000000:01:00.0", "00008ED0:00:00.0"])),
            compute_mode=draw(st.none() | st.sampled_from(["Default", "Exclusive_Process"])),
            mig_mode=draw(st.none() | st.sampled_from(["Enabled", "Disabled"])),
            numa_node=draw(small),
            unusable=draw(st.none() | text),
            processes=draw(
                st.none() | st.lists(st.builds(Process, st.integers(1, PID_MAX_LIMIT), number), max_size=2).map(tuple)
            ),
        )
        devices.append(replace(gpu, instances=draw(instances(gpu)) if gpu.mig_mode == "Enabled" else ()))
    pairs = [(one.index, other.index) for place, one in enumerate(devices) for other in devices[place + 1 :]]
    words = {pair: draw(st.none() | st.sampled_from(["NV12", "PSB", "PIX", "NODE", "SYS"])) for pair in pairs}
    return devices, {pair: word for pair, word in words.items() if word}


odd = st.none() | text | st.sampled_from([f"GPU-{REAL}", f"MIG-{REAL}", "X", "Enabled", "Default", "1g.5gb"])


@st.composite
def odd_hosts(draw: st.DrawFn) -> tuple[list[Device], Links]:
    devices = []
    for index in draw(st.lists(st.integers(0, 20), unique=True, max_size=3)):
        gpu = Device(index, draw(odd), draw(odd), draw(st.none() | st.integers(0, 1 << 64)), mig_mode=draw(odd))
        gpu = replace(gpu, pci_bus_id=draw(odd), compute_mode=draw(odd), unusable=draw(odd))
        numbers = draw(st.lists(st.integers(0, 6), unique=True, max_size=2))
        instances = [Device(index, mig_index=number, mig_profile=draw(odd)) for number in numbers]
        devices.append(replace(gpu, instances=tuple(instances)))
    pairs = [(one.index, other.index) for one in devices for other in devices if one.index < other.index]
    devices = [
        replace(gpu, uuid=None if gpu.uuid == f"GPU-{REAL}" and index else gpu.uuid)
        for index, gpu in enumerate(devices)
    ]
    return devices, {pair: draw(text | st.just("X")) for pair in pairs}


@given(host=odd_hosts())
def test_whatever_a_driver_says_the_recording_can_be_read(
    host: tuple[list[Device], Links], tmp_path_factory: pytest.TempPathFactory
) -> None:
    devices, links = host
    recorded, _ = read(render(devices, links), tmp_path_factory.getbasetemp())
    assert [device.index for device in recorded] == sorted(device.index for device in devices)


@given(host=hosts())
def test_whatever_a_backend_gives_is_read_back(
    host: tuple[list[Device], Links], tmp_path_factory: pytest.TempPathFactory
) -> None:
    devices, links = host
    rendered = render(devices, links)
    assert not {uuid for uuid in UUID.findall("".join(uuids(devices))) if uuid in rendered}
    recorded, recorded_links = read(rendered, tmp_path_factory.getbasetemp())
    assert anonymous(recorded) == anonymous(devices)
    assert recorded_links == links
