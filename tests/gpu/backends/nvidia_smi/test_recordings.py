"""Each kind of recorded output by itself, and each recorded failure."""

import re
import sys
from pathlib import Path

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends.nvidia_smi import mig_listing, topo
from externalresource_gpu.backends.nvidia_smi.backend import FIELDS, NvidiaSmi
from externalresource_gpu.backends.nvidia_smi.mig_listing import Detail
from tests.support.backends import soon
from tests.support.recordings import H100, H100_MIG, H200, L40S, RECORDED, RTX_2080, RTX_2080_WINDOWS, RTX_4080, read

pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings of nvidia-smi are not here")
GPU = "GPU-00000000-0000-0000-0000-000000000000"  # all captures named uo- have this UUID


def one_g(profile: str, *uuids: str) -> list[tuple[int, str, str]]:
    return [(index, profile, f"MIG-{uuid}") for index, uuid in enumerate(uuids)]


LISTS: dict[str, list[tuple[str, list[tuple[int, str | None, str]]]]] = {
    "comment-jetson-orin": [("54d0709b-558d-5a59-9c65-0c5fc14a21a4", [])],
    "ctk-mig-oldest-format": [
        (
            "GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5",
            [
                (0, None, "MIG-GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5/1/0"),
                (1, None, "MIG-GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5/1/1"),
                (2, None, "MIG-GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5/11/0"),
            ],
        )
    ],
    "dra-gb200-mig": [
        (
            "GPU-7277883e-ce1e-3b6e-6cc1-6d52e80cdb86",
            [(0, "1g.24gb", "MIG-5b696ac1-c323-589e-a082-e6045e980bf4")],
        )
    ],
    "dra-gh200x2-mig-1g.12gb": [
        (
            "GPU-a4f34abc-7715-3560-dcea-7238b9611a45",
            [
                *one_g(
                    "1g.12gb",
                    "4d806f22-346a-5a1d-ac01-86b505cdf485",
                    "8949ea7d-9166-53ce-9bac-6c58262addf9",
                    "48e730aa-3a45-5cf9-b1f3-07d2916e9d83",
                    "ddcdfb36-d773-524c-9dc8-4075877523e6",
                    "59e178f7-0c5e-52e3-902c-bf2f31c2275f",
                    "d0c7cbd9-070b-58c6-9f87-cb8dd99a7214",
                    "24c6a0e5-fe28-53ac-9537-c4e23104f30f",
                )
            ],
        ),
        (
            "GPU-9e6df7cb-64d4-5e53-2b1d-cee9e58aeb94",
            [
                *one_g(
                    "1g.12gb",
                    "643fb61f-fb9a-553e-87d8-627fa535d3cb",
                    "d256cb8d-de32-55bf-833a-ef8a59112a84",
                    "5ff5c47b-80e1-525d-bb61-5eef5ce0441a",
                    "81544523-8683-58cd-8b72-5d797baf35de",
                    "9b33318c-1fa4-58eb-a6f5-18273c6db866",
                    "4e9fed73-e2a4-512f-ad8e-e7bb75aa920e",
                    "c7cbc24b-a93f-5ff3-b388-deba1f3ac17e",
                )
            ],
        ),
    ],
    "insights-a100-pcie-x2": [
        ("GPU-63110aaa-3561-c8f5-e125-4ab40bbcf838", []),
        ("GPU-c9bd25dc-c0c4-3ab6-8f7f-3ad16d6bde4a", []),
    ],
    "insights-t1000-and-v100": [
        ("GPU-c05fe28c-5935-1c6d-3633-2fc61d26b6d4", []),
        ("GPU-b08ecee0-0ea5-7b07-d459-baa5b95f5e89", []),
    ],
    "nvdocs-a100-mig-7x1g-450-format": [
        (
            "GPU-4200ccc0-2667-d4cb-9137-f932c716232a",
            [*one_g("1g.5gb", *(f"GPU-4200ccc0-2667-d4cb-9137-f932c716232a/{gi}/0" for gi in range(7, 14)))],
        )
    ],
    "nvdocs-a10x2": [
        ("GPU-ebd34bdf-1083-eaac-2aff-4b71a022f9bd", []),
        ("GPU-1795e88b-3395-b27b-dad8-0488474eec0c", []),
    ],
    "nvdocs-h100-mig-7x1g": [
        (
            "GPU-b4895dbf-9350-2524-a89b-98161ddd9fe4",
            [
                *one_g(
                    "1g.10gb",
                    "3f6f389f-b0cc-5e5c-8e32-eaa8fd067902",
                    "35f93699-4b53-5a19-8289-80b8418eec60",
                    "9d14fb21-4ae1-546f-a636-011582899c39",
                    "0f709664-740c-52b0-ae79-3e4c9ede6d3b",
                    "5d23f73a-d378-50ac-a6f5-3bf5184773bb",
                    "6cea15c7-8a56-578c-b965-0e73cb6dfc10",
                    "981c86e9-3607-57d7-9426-295347e4b925",
                )
            ],
        )
    ],
    f"uo-{RTX_2080}": [(GPU, [])],
    f"uo-{RTX_4080}": [(GPU, [])],
    f"uo-{H100}": [(GPU, [])],
    f"uo-{H100_MIG}": [
        (
            GPU,
            [
                (0, "3g.40gb", "MIG-00000000-0000-0000-0000-000000000000"),
                (1, "2g.20gb", "MIG-00000001-0000-0000-0000-000000000001"),
                (2, "1g.10gb", "MIG-00000002-0000-0000-0000-000000000002"),
                (3, "1g.10gb", "MIG-00000003-0000-0000-0000-000000000003"),
            ],
        )
    ],
    f"uo-{H200}": [(GPU, [])],
    f"uo-{L40S}": [(GPU, [])],
    f"uo-{RTX_2080_WINDOWS}": [(GPU, [])],
}


@pytest.mark.parametrize("name", LISTS)
def test_recorded_list(name: str) -> None:
    found = mig_listing.parse(read(f"list/{name}.L.txt"))
    assert [(gpu.uuid, gpu.instances) for gpu in found.values()] == LISTS[name]
    assert list(found) == list(range(len(LISTS[name])))
    assert {gpu.wrong for gpu in found.values()} == {None}


#: The UUIDs of the GPUs in each XML; where upstream gave two GPUs one UUID, there is one.
DOCUMENTS = {
    "a0s-nvidia-smi-3": ["GPU-683c6e09-3969-31a5-b7ca-cc88252b7fce", "GPU-90e3dab0-b59d-8bf6-d909-d4fab8d2f29b"],
    "a0s-nvidia-smi-4": ["GPU-1ffe36ef-ac55-60ad-f9cf-623871e7736d"],
    "pai-nvidia_smi_outdated_gpu": ["GPU-09cb2925-9d01-5ca4-810b-6cdebe86b71a"],
    "pai-nvidia_smi_sample": ["GPU-e511a7b2-f9d5-ba47-9b98-853732ca6c1b", "GPU-28daffaf-8abe-aaf8-c298-4bd13aecb5e6"],
    "pai-nvidia_smi_sample_ecc_unsupported": [
        "GPU-57567e11-0be2-381b-5132-2ad95c262e58",
        "GPU-ef1d0068-5bfd-f1e4-7e79-ff35d71d44b8",
    ],
    "telegraf-a100-sxm4-v12": ["GPU-513536b6-7d19-9063-b049-1e69664bb298"],
    "telegraf-a10g": ["GPU-9a9a6c50-2a47-2f51-a902-b82c3b127e94"],
    "telegraf-dual_2070-v13": [
        "GPU-12345678-aaaa-bbbb-cccc-0123456789ab",
        "GPU-12345678-aaaa-bbbb-cccc-0123456789cd",
    ],
    "telegraf-dual_2080-v13": ["GPU-12345678-aaaa-bbbb-cccc-0123456789ab"],
    "telegraf-gt-1030": ["GPU-857c6374-f681-cf3a-f99f-9063a87b8ac0"],
    "telegraf-gtx-1070-ti": ["GPU-f9ba66fc-a7f5-94c5-da19-019ef2f9c665"],
    "telegraf-gtx-1660-ti": ["GPU-304a277d-3545-63b8-3a36-dfde3c992989"],
    "telegraf-pro-6000-maxq-blackwell-v13": ["GPU-12345678-aaaa-bbbb-cccc-0123456789ab"],
    "telegraf-quadro-p2000-v12": ["GPU-396caaed-39ca-3199-2e68-717cdb786ec6"],
    "telegraf-quadro-p400": ["GPU-8f750be4-dfbc-23b9-b33f-da729a536494"],
    "telegraf-rtx-3060-v12": ["GPU-d6889ff6-2523-9142-ca3c-1ca3f396a625"],
    "telegraf-rtx-3080-v12": ["GPU-19d6d965-2acc-f646-00f8-4c76979aabb4"],
    "telegraf-rtx-3080-v13": ["GPU-19d6d965-2acc-f646-00f8-4c76979aabb4"],
    "telegraf-rtx-3090-v12": ["GPU-12345678-aaaa-bbbb-cccc-0123456789ab"],
    "telegraf-rtx-4000-sff-ada-v13": ["GPU-37037c3f-65c8-ec4d-24a9-420204ad8026"],
    "telegraf-tesla-t4": ["GPU-d37e67a5-91dd-3774-a5cb-99096249601a"],
    "tony-nvidia-smi-sample-tesla-p100x2": [
        "GPU-28604e81-21ec-cc48-6759-bf2648b22e16",
        "GPU-46915a82-3fd2-8e11-ae26-a80b607c04f3",
    ],
}
DIVIDED = {
    "telegraf-a100-sxm4-v12": {
        0: Detail(gpu_instance=3, compute_instance=0, total=19968, used=12),
        1: Detail(gpu_instance=4, compute_instance=0, total=19968, used=12),
        2: Detail(gpu_instance=5, compute_instance=0, total=19968, used=12),
        3: Detail(gpu_instance=6, compute_instance=0, total=19968, used=12),
    }
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_recorded_xml(name: str) -> None:
    text = read(f"xml/{name}.xml")
    assert mig_listing.parse_xml(text) == {uuid: DIVIDED.get(name, {}) for uuid in DOCUMENTS[name]}


#: All were made on machines of one GPU.
MATRICES = [f"uo-{name}" for name in (RTX_2080, RTX_4080, H100, H100_MIG, H200, L40S)]


@pytest.mark.parametrize("name", MATRICES)
def test_recorded_matrix(name: str) -> None:
    assert topo.parse(read(f"topo/{name}.topo-m.txt")) == {}


def test_recorded_matrix_with_one_more_gpu() -> None:
    """The line of GPU 0 as it was recorded, with a second GPU put in: the columns stay where they belong."""
    header, row = read(f"topo/uo-{H200}.topo-m.txt").splitlines()[:2]
    text = [header.replace("GPU0", "GPU0\tGPU1"), row.replace(" X ", " X \tNV18")]
    assert topo.parse("\n".join(text)) == {(0, 1): "NV18"}


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_is_in_the_recorded_help(field: str) -> None:
    assert f'"{field}"' in read(f"misc/uo-{H200}.help-query-gpu.txt")


def test_no_recording_is_left_out() -> None:
    machines = (H100, H100_MIG, H200, L40S, RTX_2080, RTX_2080_WINDOWS, RTX_4080)
    tables = {path.name for path in (RECORDED / "query-gpu").iterdir() if not path.name.startswith("uo-")}
    assert tables == {
        "vertex-rtx2080super-win.csv",
        "a0s-nvidia-smi-1.csv",
        "a0s-nvidia-smi-2.csv",
        "azhpc-v100x4-ecc-fields.csv",
    }
    captured = {path.name.split(".load")[0].split(".idle")[0] for path in (RECORDED / "query-gpu").glob("uo-*")}
    assert captured == {f"uo-{name}" for name in machines}
    assert {path.name.removesuffix(".L.txt") for path in (RECORDED / "list").iterdir()} == set(LISTS)
    assert {path.stem for path in (RECORDED / "xml").iterdir()} == set(DOCUMENTS)
    assert {path.name.removesuffix(".topo-m.txt") for path in (RECORDED / "topo").iterdir()} == set(MATRICES)
    assert len(list((RECORDED / "misc").iterdir())) == 1


# How nvidia-smi fails, in the words of the table in PROVENANCE.md


def failures() -> list[tuple[str, str]]:
    """Exit and message of each line of the table, where it is."""
    if not RECORDED.is_dir():
        return []
    text = read("PROVENANCE.md").partition("## How nvidia-smi fails")[2]
    lines = re.findall(r"^\| (-?\d+|none)(?: \(\w\))? \| (.+?) \|", text, re.MULTILINE)
    return [(status, "\n".join(re.findall(r"`([^`]+)`", message))) for status, message in lines]


#: What is to be done, by exit and the beginning of the message.
TO_DO = {
    ("2", 'Field "x"'): "update it",
    ("4", "Failed to initialize NVML: Insufficient Permissions"): "who may open /dev/nvidia*",
    ("6", "Unable to determine"): "a GPU is broken: reboot the machine",
    ("9", "NVIDIA-SMI has failed"): "modprobe nvidia",
    ("12", "NVIDIA-SMI couldn't find"): "install the NVIDIA driver; a container gets its library",
    ("15", "Unable to determine"): "a GPU fell off the bus: reboot the machine",
    ("17", "Failed to initialize NVML: GPU access blocked"): "update the Windows driver",
    ("18", "Failed to initialize NVML: Driver/library version mismatch"): "the driver was updated and the old one",
    ("127", ""): "the NVIDIA driver brings nvidia-smi",
    ("255", "Failed to initialize NVML: Unknown Error"): "a container that lost its devices",
    ("-11", ""): "the driver's library may not fit the driver",
}
#: No error: no GPU at all, a warning after the table, and a hang, of which more in test_failures.py.
NO_ERROR = {("6", "No devices were found"), ("14", "WARNING: infoROM"), ("none", "")}


def what_to_do(status: str, message: str) -> str | None:
    known = [todo for (exits, begins), todo in TO_DO.items() if exits == status and message.startswith(begins)]
    return known[0] if known else None


def test_each_failure_that_is_known_is_expected_here() -> None:
    assert len(failures()) == len(TO_DO) + len(NO_ERROR)
    for status, message in failures():
        other = any(status == exits and message.startswith(begins) for exits, begins in NO_ERROR)
        assert (what_to_do(status, message) is not None) != other, message


@pytest.mark.parametrize(("status", "message"), [known for known in failures() if what_to_do(*known)])
def test_recorded_failure_tells_what_was_said_and_what_to_do(tmp_path: Path, status: str, message: str) -> None:
    program = tmp_path / "nvidia-smi"
    end = f"os.kill(os.getpid(), {status[1:]})" if status.startswith("-") else f"sys.exit({status})"
    said = message or ("sh: 1: nvidia-smi: not found" if status == "127" else "")
    program.write_text(f"#!{sys.executable} -SE\nimport os, sys\nprint({said!r}, flush=True)\n{end}\n")
    program.chmod(0o755)
    with pytest.raises(DiscoveryError) as error:
        NvidiaSmi(str(program), str(tmp_path / "version"), str(tmp_path / "gpus")).devices(soon())
    told, todo = str(error.value), what_to_do(status, message)
    assert todo is not None
    assert todo in told
    assert " ".join(said.partition("\n")[0].split()) in told
    assert "\n" not in told
