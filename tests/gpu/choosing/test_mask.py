import pytest
from hypothesis import given, strategies as st

from externalresource.records import replace
from externalresource_gpu.choosing import mask
from externalresource_gpu.choosing.mask import ambiguity, ordinal, visible
from externalresource_gpu.device import Device

UUIDS = (
    "GPU-9e8d35e3-d5c8-4bd5-8ac3-a0ba6b3dd1b1",
    "GPU-12345678-1111-4bd5-8ac3-a0ba6b3dd1b1",
    "GPU-12345679-2222-4bd5-8ac3-a0ba6b3dd1b1",
    "GPU-44444444-3333-4bd5-8ac3-a0ba6b3dd1b1",
    "GPU-55555555-4444-4bd5-8ac3-a0ba6b3dd1b1",
    "GPU-66666666-5555-4bd5-8ac3-a0ba6b3dd1b1",
)
GPUS = [Device(index, uuid=uuid, name="NVIDIA A100-SXM4-40GB", mig_mode="Disabled") for index, uuid in enumerate(UUIDS)]
NEW = [f"MIG-{letter * 8}-293f-58c9-8f8c-5ea666eedbde" for letter in "abc"]


def divided(gpu: Device, *uuids: str) -> Device:
    """Return the GPU with MIG on, as drivers since 470 show it; the second instance has no number 1."""
    numbers = (0, 2, 3)[: len(uuids)]
    return replace(
        gpu,
        mig_mode="Enabled",
        instances=tuple(
            Device(
                gpu.index,
                uuid=uuid,
                mig_index=number,
                gpu_instance=7 + number,
                compute_instance=0,
                parent_uuid=gpu.uuid,
            )
            for number, uuid in zip(numbers, uuids, strict=True)
        ),
    )


MIXED = [GPUS[0], divided(GPUS[1], *NEW[:2]), divided(GPUS[2]), divided(GPUS[3], NEW[2])]


def places(mask: str | None, devices: list[Device] = GPUS) -> list[str]:
    return [device.place for device in visible(mask, devices)]


# ---- masks of GPUs: each row of the table in NVIDIA's guide, and of what PyTorch and nvitop agree on -----------------


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (None, "012345"),
        ("", ""),
        ("0,1", "01"),
        (" 1 , 0 ", "10"),
        ("2,1", "21"),
        ("\t3\n,\v4\f,\r5", "345"),
        ("-1", ""),
        ("-1,0", ""),
        ("0, 1, 2, -1, 3", "012"),
        ("0,2,-1,1", "02"),
        ("1gpu2,2ampere", "12"),
        ("0x3", "0"),
        ("3.5,1e9", "31"),
        ("1 2,3", "13"),
        ("2, +3, -0, 5", "2305"),
        ("+-1", ""),
        ("- 1", ""),
        ("+", ""),
        ("007,1", ""),
        ("005,01", "51"),
        ("0, 1, 2, 1", ""),
        ("2,02", ""),
        ("0,-0", ""),
        ("00", "0"),
        ("0,-1,0", "0"),
        ("one,two,3,4", ""),
        ("4,3,two,one", "43"),
        ("NoDevFiles", ""),
        ("none", ""),
        ("void", ""),
        ("all", ""),
        (",0", ""),
        ("0,,1", "0"),
        ("0,", "0"),
        (" ", ""),
        ("6", ""),
        ("0,6,1", "0"),
        ("18446744073709551617", ""),
        ("9" * 5000, ""),
        ("0" * 5000 + "3", "3"),
        ("²", ""),
        ("٣", ""),
        ("\xa01", ""),
        ("\ufeff1", ""),
    ],
)
def test_indices_are_read_as_strtoul_reads_them_up_to_the_first_that_is_none(mask: str | None, shown: str) -> None:
    assert "".join(places(mask)) == shown


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (UUIDS[3], "3"),
        (f"{UUIDS[3]},{UUIDS[0]}", "30"),
        ("GPU-9e8d35e3", "0"),
        ("GPU-9", "0"),
        ("GPU-12345678", "1"),
        ("GPU-1234567", ""),
        ("GPU-", ""),
        ("GPU-4,GPU-1234567,GPU-5", "3"),
        ("GPU-4,GPU-7,GPU-5", "3"),
        ("GPU-4,GPU-44444444,GPU-5", ""),
        ("GPU-4,GPU-5,GPU-4", ""),
        ("GPU-4,GPU-7,GPU-4", ""),
        ("GPU-4, 2", "3"),
        ("GPU-4,2", "3"),
        ("GPU-4, GPU-5", "3"),
        ("GPU-4 ,GPU-5", ""),
        (" GPU-4", ""),
        ("2,GPU-4", "2"),
        ("GPU-4,MIG-GPU-4", "3"),
        ("gpu-4", ""),
        ("GPU-9E8D35E3", ""),
        ("9e8d35e3", ""),
        ("44444444-3333", ""),
        (f"{UUIDS[3]}0", ""),
    ],
)
def test_uuids_may_be_cut_as_long_as_they_are_unique(mask: str, shown: str) -> None:
    assert "".join(places(mask)) == shown


def test_single_gpu_has_any_prefix() -> None:
    assert places("GPU-", GPUS[:1]) == ["0"]


@pytest.mark.parametrize("mask", [None, "", "0", "-1", "GPU-9", NEW[0], "0,1"])
def test_host_without_gpus_shows_none(mask: str | None) -> None:
    assert visible(mask, []) == []


def test_bare_uuid_of_a_jetson_is_no_mask_but_its_index_is() -> None:
    orin = [Device(0, uuid="54d0709b-558d-5a59-9c65-0c5fc14a21a4", name="Orin (nvgpu)")]
    assert places("54d0709b-558d-5a59-9c65-0c5fc14a21a4", orin) == []
    assert places("0", orin) == ["0"]


# ---- MIG ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (None, ["0", "1:0", "1:2", "3:0"]),
        ("", []),
        (NEW[0], ["1:0"]),
        (NEW[1], ["1:2"]),
        (f"{NEW[1]},{NEW[0]}", ["1:2"]),
        (f"{NEW[1]},{UUIDS[0]}", ["1:2"]),
        (f"{NEW[1]},{NEW[1]}", []),
        (f"MIG-unknown,{NEW[1]}", []),
        (NEW[1][:-1], []),
        ("MIG-aaaaaaaa", []),
        ("MIG-", []),
        (f" {NEW[1]}", []),
        (f"MIG-{UUIDS[1]}/7/0", ["1:0"]),
        (f"MIG-{UUIDS[1]}/9/0", ["1:2"]),
        (f"MIG-{UUIDS[1]}/8/0", []),
        (f"MIG-{UUIDS[1]}/9/1", []),
        (f"MIG-{UUIDS[0]}/9/0", []),
        (f"MIG-{UUIDS[1][:12]}/9/0", []),
        ("0", ["0"]),
        ("1", ["1:0"]),
        ("3", ["3:0"]),
        ("0,1", ["1:0"]),
        ("3,1", ["3:0"]),
        ("2", []),
        ("2,0", ["0"]),
        ("0,0,1", []),
        ("GPU-12345678", ["1:0"]),
        ("GPU-9,GPU-12345678", ["1:0"]),
    ],
)
def test_mask_shows_gpus_or_one_mig_instance(mask: str | None, shown: list[str]) -> None:
    assert places(mask, MIXED) == shown


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        (f"{NEW[1]},{NEW[0]}", ["1:2", "1:0"]),
        (f"{NEW[1]},{NEW[1]}", []),
        ("1", ["1:0", "1:2"]),
        ("3,0,1", ["3:0", "0", "1:0", "1:2"]),
        ("2", []),
    ],
)
def test_as_a_bound_a_mask_shows_all_instances_that_it_names(mask: str, shown: list[str]) -> None:
    assert [device.place for device in visible(mask, MIXED, one_instance=False)] == shown


def test_instance_of_an_old_driver_has_its_only_name() -> None:
    old = f"MIG-{UUIDS[1]}/7/0"
    instance = replace(MIXED[1].instances[0], uuid=old, gpu_instance=None, compute_instance=None)
    host = [GPUS[0], replace(MIXED[1], instances=(instance,))]
    assert places(old, host) == ["1:0"]
    assert places("MIG-None/None/None", host) == []


def test_instance_without_a_uuid_is_found_by_its_ids() -> None:
    host = [replace(MIXED[1], instances=(replace(MIXED[1].instances[0], uuid=None),))]
    assert places(f"MIG-{UUIDS[1]}/7/0", host) == ["1:0"]


def test_gpu_with_mig_off_shows_itself_whatever_instances_it_is_said_to_have() -> None:
    assert places(None, [replace(MIXED[1], mig_mode="Disabled")]) == ["1"]


# ---- gaps: an index means what nvidia-smi prints --------------------------------------------------------------------

LOST = [GPUS[0], Device(1, unusable="GPU is lost"), *GPUS[2:4]]
GAP = [GPUS[0], *GPUS[2:4]]


@pytest.mark.parametrize(
    ("devices", "mask", "shown"),
    [
        (LOST, None, "0123"),
        (LOST, "0,1,2", "012"),
        (LOST, "2", "2"),
        (LOST, "1,3", "13"),
        (LOST, UUIDS[2], "2"),
        (GAP, None, "023"),
        (GAP, "0,1,2", "02"),
        (GAP, "3", "3"),
        (GAP, "1", ""),
        (GAP, "1,1,2", ""),
        (GAP, "0,4,2", "0"),
    ],
)
def test_lost_gpu_keeps_its_index_and_ends_no_list(devices: list[Device], mask: str | None, shown: str) -> None:
    assert "".join(places(mask, devices)) == shown


def test_index_that_no_host_can_have_costs_nothing() -> None:
    host = [GPUS[0], Device(10**18)]
    assert places(f"0,5,{10**18}", host) == ["0", str(10**18)]
    assert ambiguity(str(10**18), host, None) == COUNTS


def test_unusable_gpu_is_shown_with_its_reason() -> None:
    assert visible("1", LOST)[0].unusable == "GPU is lost"


# ---- what a mask may mean to CUDA -----------------------------------------------------------------------------------

BOARD = [replace(GPUS[0], name="NVIDIA A10"), *GPUS[1:3]]
KINDS = (
    "CUDA_DEVICE_ORDER is not PCI_BUS_ID: CUDA counts the fastest GPU first, nvidia-smi by bus id, and these are of "
    "several kinds"
)
COUNTS = "GPU 1 cannot be seen: CUDA counts without it, nvidia-smi with it"


@pytest.mark.parametrize(
    ("mask", "devices", "order", "relative", "reason"),
    [
        ("0", BOARD, None, False, KINDS),
        ("0", BOARD, "FASTEST_FIRST", False, KINDS),
        ("0", BOARD, "PCI_BUS_ID", False, None),
        ("0", GPUS, None, False, None),
        (None, BOARD, None, False, None),
        (None, BOARD, None, True, KINDS),
        (None, BOARD, "PCI_BUS_ID", True, None),
        ("", BOARD, None, True, None),
        ("-1", BOARD, None, True, None),
        (UUIDS[0], BOARD, None, True, None),
        (NEW[0], MIXED, None, True, None),
        ("0", LOST, None, False, None),
        ("0,1", LOST, "PCI_BUS_ID", False, COUNTS),
        ("2", LOST, "PCI_BUS_ID", False, COUNTS),
        ("2", GAP, "PCI_BUS_ID", False, COUNTS),
        (" 2x", GAP, "PCI_BUS_ID", True, COUNTS),
        ("9", LOST, None, False, None),
        (UUIDS[2], LOST, None, False, None),
        (None, LOST, None, True, None),
    ],
)
def test_mask_by_index_is_ambiguous_where_cuda_counts_otherwise(
    mask: str | None, devices: list[Device], order: str | None, reason: str | None, *, relative: bool
) -> None:
    assert ambiguity(mask, devices, order, relative=relative) == reason


def test_no_mask_is_not_ambiguous_as_a_bound() -> None:
    assert ambiguity(None, BOARD, None) is None


def test_gpu_that_needs_a_reset_is_counted_by_cuda() -> None:
    host = [GPUS[0], replace(GPUS[1], unusable="GPU requires reset"), GPUS[2]]
    assert ambiguity("2", host, None) is None
    assert ordinal(GPUS[2], visible(None, host)) == 2


# ---- ordinals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "devices", "ordinals"),
    [
        (None, GPUS[:3], {"0": 0, "1": 1, "2": 2, "5": None}),
        ("2,0", GPUS[:3], {"0": 1, "1": None, "2": 0}),
        (f"{UUIDS[1]},{UUIDS[0]}", GPUS[:3], {"0": 1, "1": 0, "2": None}),
        ("", GPUS[:3], {"0": None}),
        (None, LOST, {"0": 0, "1": None, "2": 1, "3": 2}),
        (NEW[1], MIXED, {"1:2": 0, "1:0": None, "1": None}),
        (None, MIXED, {"0": None, "1:0": None}),
        ("3", MIXED, {"3:0": 0, "3": None}),
    ],
)
def test_ordinal_is_the_place_among_what_cuda_shows(
    mask: str | None, devices: list[Device], ordinals: dict[str, int | None]
) -> None:
    everything = {device.place: device for gpu in [*devices, GPUS[5]] for device in (gpu, *gpu.instances)}
    shown = visible(mask, devices)
    assert {place: ordinal(everything[place], shown) for place in ordinals} == ordinals


def test_device_that_was_judged_since_keeps_its_ordinal() -> None:
    assert ordinal(replace(GPUS[1], unusable="held"), visible("2,1", GPUS)) == 1


# ---- rules that hold for every mask ---------------------------------------------------------------------------------

ENTRIES = st.one_of(
    st.integers(-2, 8).map(str),
    st.sampled_from(["", " ", "+1", "-0", "00", "2x", "void", "GPU-", "MIG-", "GPU-1234567", *NEW]),
    st.sampled_from(UUIDS).flatmap(lambda uuid: st.integers(4, len(uuid)).map(lambda end: uuid[:end])),
    st.text(max_size=5),
)
MASKS = st.lists(ENTRIES, max_size=6).map(",".join)
HOSTS = st.sampled_from([GPUS, MIXED, LOST, GAP, BOARD, []])


@given(MASKS, HOSTS)
def test_mask_shows_nothing_twice_and_nothing_that_is_not_there(mask: str, host: list[Device]) -> None:
    shown = [device.place for device in visible(mask, host)]
    assert len(set(shown)) == len(shown)
    assert set(shown) <= {device.place for gpu in host for device in (gpu, *gpu.instances)}


@given(MASKS, HOSTS)
def test_mask_shows_gpus_or_one_instance_alone(mask: str, host: list[Device]) -> None:
    shown = visible(mask, host)
    assert len(shown) == 1 or not any(device.mig_index is not None for device in shown)


@given(MASKS, HOSTS)
def test_as_a_bound_it_shows_no_less(mask: str, host: list[Device]) -> None:
    bound = visible(mask, host, one_instance=False)
    assert all(device in bound for device in visible(mask, host))


@given(st.lists(st.integers(0, 5), unique=True))
def test_mask_of_the_indices_shown_shows_them_again(indices: list[int]) -> None:
    mask = ",".join(map(str, indices))
    assert [device.index for device in visible(mask, GPUS)] == indices
    assert visible(",".join(UUIDS[index] for index in indices), GPUS) == visible(mask, GPUS)


@given(MASKS, MASKS)
def test_what_follows_an_entry_that_names_nothing_is_not_read(mask: str, more: str) -> None:
    assert visible(f"{mask},-1,{more}", GPUS) == visible(f"{mask},-1", GPUS)


def test_order_is_cudas_own_word() -> None:
    assert mask.PCI_ORDER == "PCI_BUS_ID"
