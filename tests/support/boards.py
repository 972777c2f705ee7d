"""Machines whose matrices were printed by `nvidia-smi topo -m` and published, and any others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from hypothesis import strategies as st

from externalresource.coordination import Claim
from externalresource.records import replace
from externalresource_gpu.choosing.policies import select
from externalresource_gpu.device import Device
from tests.support.devices import claim_of

Links = dict[tuple[int, int], str]


@dataclass(frozen=True)
class Board:
    gpus: Sequence[Device]
    links: Links = field(default_factory=dict)

    def take(
        self, amount: int, *, policy: str = "connected", taken: Sequence[int] = (), free: Sequence[Device] = ()
    ) -> list[int]:
        """Return the GPUs that a request gets while others hold those that are taken."""
        claims = [claim(self.gpus[index]) for index in taken]
        free = free or [gpu for gpu in self.gpus if gpu.index not in taken]
        return [gpu.index for gpu in self.select(free, claims, amount, policy)]

    def select(self, free: Sequence[Device], claims: Sequence[Claim], amount: int, policy: str) -> list[Device]:
        return select(free, claims, amount, policy=policy, links=self.links, devices=self.gpus)


def board(matrix: str, nodes: str = "") -> Board:
    """Return the machine of a matrix; `nodes` has a digit for the NUMA node of each GPU."""
    rows = [line.split() for line in matrix.strip().splitlines()]
    size = len(rows)
    gpus = [Device(index, uuid=f"GPU-{index}", numa_node=int(nodes[index]) if nodes else None) for index in range(size)]
    return Board(gpus, {(one, other): rows[one][other] for one in range(size) for other in range(one + 1, size)})


def switched(link: str, nodes: str) -> Board:
    """Return a machine whose NVSwitch connects all GPUs alike."""
    size = len(nodes)
    return board(
        "\n".join(" ".join("X" if one == other else link for other in range(size)) for one in range(size)), nodes
    )


def divided(*counts: int, nodes: str = "") -> Board:
    """Return a machine with so many MIG instances on each GPU."""
    gpus = []
    for index, count in enumerate(counts):
        node = int(nodes[index]) if nodes else None
        gpu = Device(index, uuid=f"GPU-{index}", mig_mode="Enabled", numa_node=node)
        instances = tuple(
            Device(index, uuid=f"MIG-{index}-{number}", mig_index=number, parent_uuid=gpu.uuid, numa_node=node)
            for number in range(count)
        )
        gpus.append(replace(gpu, instances=instances))
    return Board(gpus)


def claim(device: Device) -> Claim:
    details = {"uuid": device.uuid, "parent_uuid": device.parent_uuid, "parent_token": device.parent_token}
    return claim_of(device.token, 1, {key: value for key, value in details.items() if value})


# DGX-1 with V100, a hybrid cube mesh: the links of NVIDIA/nccl#671 (GPU 0 to 3) and of go-gpuallocator's
# gpuallocator/common_test.go (all); between others there is SYS.
DGX_1 = board(
    """
    X   NV1 NV1 NV2 NV2 SYS SYS SYS
    NV1 X   NV2 NV1 SYS NV2 SYS SYS
    NV1 NV2 X   NV2 SYS SYS NV1 SYS
    NV2 NV1 NV2 X   SYS SYS SYS NV1
    NV2 SYS SYS SYS X   NV1 NV1 NV2
    SYS NV2 SYS SYS NV1 X   NV2 NV1
    SYS SYS NV1 SYS NV1 NV2 X   NV2
    SYS SYS SYS NV1 NV2 NV1 NV2 X
    """,
    "00001111",
)
# The same with P100: one link each (go-gpuallocator's gpuallocator/common_test.go).
DGX_1_PASCAL = Board(DGX_1.gpus, {pair: "NV1" if link.startswith("NV") else link for pair, link in DGX_1.links.items()})
DGX_2 = switched("NV6", "0000000011111111")  # NVIDIA/nccl-tests#78
DGX_A100 = switched("NV12", "33117755")  # NVIDIA/nccl#1505
DGX_H100 = switched("NV18", "00001111")  # vllm-project/vllm#13855
H100_QUAD = switched("NV6", "3175")  # NVIDIA/nccl#1617
# 8 A6000 with bridges between pairs: pytorch/pytorch#79299
A6000 = board(
    """
    X    NV4  NODE NODE SYS  SYS  SYS  SYS
    NV4  X    NODE NODE SYS  SYS  SYS  SYS
    NODE NODE X    NV4  SYS  SYS  SYS  SYS
    NODE NODE NV4  X    SYS  SYS  SYS  SYS
    SYS  SYS  SYS  SYS  X    NV4  NODE NODE
    SYS  SYS  SYS  SYS  NV4  X    NODE NODE
    SYS  SYS  SYS  SYS  NODE NODE X    NV4
    SYS  SYS  SYS  SYS  NODE NODE NV4  X
    """,
    "00001111",
)
# Two PCIe switches behind each of two processors: lattice/quda#669
SWITCHES = board(
    """
    X   PIX PXB PXB SYS SYS SYS SYS
    PIX X   PXB PXB SYS SYS SYS SYS
    PXB PXB X   PIX SYS SYS SYS SYS
    PXB PXB PIX X   SYS SYS SYS SYS
    SYS SYS SYS SYS X   PIX PXB PXB
    SYS SYS SYS SYS PIX X   PXB PXB
    SYS SYS SYS SYS PXB PXB X   PIX
    SYS SYS SYS SYS PXB PXB PIX X
    """,
    "00001111",
)
# A pair on a switch and a single one behind each of two processors: pytorch/pytorch#47885
THREE_AND_THREE = board(
    """
    X    PIX  NODE SYS  SYS  SYS
    PIX  X    NODE SYS  SYS  SYS
    NODE NODE X    SYS  SYS  SYS
    SYS  SYS  SYS  X    PIX  NODE
    SYS  SYS  SYS  PIX  X    NODE
    SYS  SYS  SYS  NODE NODE X
    """,
    "000111",
)
# 8 RTX 4090 in a virtual machine that shows no way but SYS: NVIDIA/go-gpuallocator#17
ALL_SYS = switched("SYS", "00001111")
# 4 RTX 8000 with bridges across: go-gpuallocator's gpuallocator/common_test.go
BRIDGED_ACROSS = board(
    """
    X    NODE SYS  NV2
    NODE X    NV2  SYS
    SYS  NV2  X    NODE
    NV2  SYS  NODE X
    """,
    "0011",
)
# A bridged pair and a pair without: NVIDIA/k8s-device-plugin#436, here as two A10 and two A100.
MIXED = board(
    """
    X    NODE SYS  SYS
    NODE X    SYS  SYS
    SYS  SYS  X    NV12
    SYS  SYS  NV12 X
    """,
    "0011",
)

WORDS = ("NV1", "NV2", "NV12", "PIX", "PXB", "PHB", "NODE", "SYS")


@st.composite
def machines(draw: st.DrawFn, most: int = 8) -> Board:
    """Return a machine: a printed one, one with MIG, or one with any links that need make no sense."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.sampled_from([DGX_1, DGX_A100, A6000, SWITCHES, THREE_AND_THREE, MIXED, ALL_SYS]))
    if kind == 1:
        counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
        return divided(*counts, nodes=draw(st.sampled_from(["", "0011", "0101"])))
    size = draw(st.integers(3, most))
    nodes = draw(st.lists(st.sampled_from([None, 0, 1]), min_size=size, max_size=size)) if kind == 2 else [None] * size
    words = draw(st.sampled_from([(*WORDS, None), ("NV1", "SYS"), ("NV2", "NV1", "SYS"), ("NV12", "NODE", "SYS")]))
    drawn = {pair: draw(st.sampled_from(words)) for pair in combinations(range(size), 2)}
    links = {pair: link for pair, link in drawn.items() if link is not None}
    return Board([Device(index, uuid=f"GPU-{index}", numa_node=node) for index, node in enumerate(nodes)], links)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Board, list[Device], list[Claim], int]:
    """Return a machine, what is free of it in any order, who holds the rest, and an amount that there is."""
    host = draw(machines())
    everything = [device for gpu in host.gpus for device in (gpu.instances or [gpu])]
    order = draw(st.permutations(everything))
    free = order[: draw(st.integers(1, len(order)))]
    claims = [claim(device) for device in everything if device not in free]
    return host, free, claims, draw(st.integers(1, len(free)))
