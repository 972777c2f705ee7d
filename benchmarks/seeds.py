"""What the parsers of GPU discovery are fed: real lines, to be changed."""

import json
from typing import Any


def uuid(digit: int) -> str:
    return f"GPU-{digit:08x}-293f-58c9-8f8c-5ea666eedbde"


ROWS = (
    (
        f"None, Disabled, 0, {uuid(1)}, 00000000:1B:00.0, 81559, 19818, Default, 0, 33, NVIDIA H100 80GB HBM3\n"
        f"Reset, Disabled, 1, {uuid(2)}, 00000000:43:00.0, 81559, 0, Default, [GPU requires reset], "
        "[GPU requires reset], NVIDIA H100 80GB HBM3\n"
    ),
    f"None, Enabled, 0, {uuid(1)}, 00000000:00:09.0, 81559, 59, Default, [N/A], 30, NVIDIA H100 80GB HBM3\n",
    f"[N/A], [N/A], 0, {uuid(1)}, 0000000F:01:00.0, [N/A], [N/A], Default, 0, 41, NVIDIA GB10\n",
    (
        f"[N/A], [N/A], 0, {uuid(1)}, 00000000:17:00.0, 23028, 4, Exclusive_Process, 0, 30, NVIDIA A10\n"
        f"[N/A], [N/A], 2, {uuid(3)}, 00000000:B1:00.0, 40960, 0, Prohibited, 0, 30, NVIDIA A100-PCIE-40GB\n"
        "Unable to determine the device handle for GPU1: 0000:02:00.0: GPU is lost.  Reboot the system\n"
    ),
    "WARNING: infoROM is corrupted at gpu 0008:00:00.0\n",
    'Field "gpu_recovery_action" is not a valid field to query.\n',
    "No devices were found\n",
)
LIST = (
    (
        f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {uuid(1)})\n"
        "  MIG 3g.40gb     Device  0: (UUID: MIG-7089d0f3-293f-58c9-8f8c-5ea666eedbde)\n"
        "  MIG 1c.3g.40gb  Device  2: (UUID: MIG-7089d0f4-293f-58c9-8f8c-5ea666eedbde)\n"
        f"GPU 1: NVIDIA H100 80GB HBM3 (UUID: {uuid(2)})\n"
    ),
    (
        f"GPU 0: A100-SXM4-40GB (UUID: {uuid(1)})\n"
        f"  MIG 1g.5gb Device 0: (UUID: MIG-{uuid(1)}/7/0)\n"
        f"  MIG Device 1: (UUID: MIG-{uuid(1)}/8/0)\n"
    ),
)
XML = (
    (
        '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>\n'
        f'<gpu id="00000000:1B:00.0">\n<uuid>{uuid(1)}</uuid>\n<mig_devices>\n<mig_device>\n<index>0</index>\n'
        "<gpu_instance_id>2</gpu_instance_id>\n<compute_instance_id>0</compute_instance_id>\n"
        "<fb_memory_usage>\n<total>19968 MiB</total>\n<used>12 MiB</used>\n</fb_memory_usage>\n"
        "</mig_device>\n</mig_devices>\n</gpu>\n</nvidia_smi_log>\n"
    ),
)
APPS = (
    f"{uuid(1)}, 1234, 512\n{uuid(1)}, 17, [N/A]\n{uuid(2)}, 99, 18446744073709551615\n",
    f"{uuid(1)}, [N/A], [Insufficient Permissions]\n",
    "No running processes found\n",
)
MATRIX = (
    (
        "\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m\n"
        "GPU0\t X \tNV12\tSYS\tPXB\t0-13,28-41\t0\nGPU1\tNV12\t X \tNODE\tSYS\t0-13,28-41\t0\n"
        "GPU2\tSYS\tNODE\t X \tSYS\t14-27\t1\nNIC0\tPXB\tSYS\tSYS\t X \n\nLegend:\n"
    ),
)
ANSWERS_OF_CHILD: tuple[dict[str, Any], ...] = (
    {
        "gpus": [
            {
                "index": 0,
                "failures": [],
                "mig_mode": 1,
                "uuid": uuid(1),
                "bus_id": "00000000:1B:00.0",
                "memory": [85520809984, 61865984],
                "compute_mode": 0,
                "name": "NVIDIA H100 80GB HBM3",
                "instances": [
                    {
                        "mig_index": 0,
                        "failures": [],
                        "uuid": "MIG-7089d0f3",
                        "memory": [42, 17],
                        "name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
                        "gpu_instance": 2,
                        "compute_instance": 0,
                        "attributes": [3, 3, 40192],
                    }
                ],
                "recovery_action": 0,
                "processes": [[1234, 536870912], [17, None]],
            },
            {"index": 1, "failures": [15]},
            {"index": 2, "failures": [4, 999], "uuid": uuid(3), "bus_id": "00000000:43:00.0", "unlisted": 3},
        ],
        "levels": [[0, 2, 50]],
        "nvlinks": [[0, ["00000000:43:00.0", "switch"]], [2, ["00000000:1B:00.0", "switch"]]],
    },
    {"call": "nvmlInit", "code": 9},
    {"no_pynvml": "No module named 'pynvml'"},
)
CHILD = tuple(f"\n{json.dumps(answer)}\n" for answer in ANSWERS_OF_CHILD)
MACHINE = (
    (
        "each: {name: NVIDIA A100, memory_total: 40960, numa_node: 0}\ngpus:\n  - pci_bus_id: 00000000:47:00.0\n"
        "    mig_mode: Enabled\n    processes: [{pid: 4194305, memory: 538}]\n    instances:\n"
        "      - {profile: 1g.5gb, mig_index: 2, gpu_instance: 9, compute_instance: 0, memory_total: 4864}\n"
        f"  - {{uuid: {uuid(2)}, unusable: GPU is lost, processes: unknown}}\n"
        "links:\n  GPU0: X NV12\n  GPU1: NV12 X\ndriver: {slow: 2.5, fails: 9}\n"
    ),
    "gpus:\n- index: 2\n  name: 'Tesla T4'\n  compute_mode: Prohibited\nlinks: SYS\ndriver: hangs\n",
    "&a [*a]\n",
    "%YAML 1.2\n---\ngpus: !!seq []\n...\n",
)
MASKS = (
    "0,1,2",
    " 1 , 0 ",
    "2, +3, -0, 5",
    "1gpu2,2ampere",
    f"{uuid(1)},{uuid(3)}",
    "GPU-0000000,GPU-00000003",
    f"MIG-{uuid(2)}/7/0",
    "MIG-7089d0f3-293f-58c9-8f8c-5ea666eedbde,MIG-7089d0f4-293f-58c9-8f8c-5ea666eedbde",
    "NoDevFiles",
    "",
)
ANSWERS = ("0,1,2\n", f"{uuid(1)},{uuid(2)},2\n", "MIG-7089d0f3-293f-58c9-8f8c-5ea666eedbde,1,0", "\n0 , 1,2\n\n")
