"""Which devices may be handed out, and what is said of the others."""

from collections.abc import Sequence

import pytest

from externalresource.errors import NotEnoughDevicesError
from externalresource.records import replace
from externalresource_gpu.choosing import candidates
from externalresource_gpu.choosing.candidates import Wanted
from externalresource_gpu.choosing.mask import visible
from externalresource_gpu.device import Device


def gpu(index: int, **fields: object) -> Device:
    device = Device(index, uuid=f"GPU-{index}", name="NVIDIA A100-SXM4-40GB", memory_total=40960, mig_mode="Disabled")
    return replace(device, **fields)


def instance(index: int, number: int, profile: str | None, memory: int = 4864, **fields: object) -> Device:
    device = Device(
        index,
        uuid=f"MIG-{index}-{number}",
        name=f"NVIDIA A100-SXM4-40GB MIG {profile}",
        memory_total=memory,
        mig_profile=profile,
        mig_index=number,
        parent_uuid=f"GPU-{index}",
    )
    return replace(device, **fields)


SLICED = gpu(1, mig_mode="Enabled", instances=(instance(1, 0, "1g.5gb"), instance(1, 2, "3g.20gb", 19968)))
MIXED = [gpu(0), SLICED]
HOST = [gpu(0), gpu(1), gpu(2), gpu(3)]


def listed(gpus: Sequence[Device], wanted: Wanted) -> list[Device]:
    return candidates.listed(gpus, visible(wanted.mask, gpus), wanted)


def usable(gpus: Sequence[Device], wanted: Wanted, amount: int = 1) -> list[str]:
    found = candidates.usable(listed(gpus, wanted), visible(wanted.mask, gpus), amount)
    return [device.place for device in found]


def reasons(gpus: Sequence[Device], wanted: Wanted) -> dict[str, str | None]:
    return {device.place: device.unusable for device in listed(gpus, wanted)}


def refusal(gpus: Sequence[Device], wanted: Wanted, amount: int) -> str:
    with pytest.raises(NotEnoughDevicesError) as caught:
        usable(gpus, wanted, amount)
    return str(caught.value)


# ---- MIG ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mig", "expected"),
    [
        ("instances", ["0", "1:0", "1:2"]),
        ("gpus", ["0"]),
        ("1g.5gb", ["1:0"]),
        ("3g.20gb", ["1:2"]),
    ],
)
def test_devices_of_a_mixed_machine_are_what_is_asked_for(mig: str, expected: list[str]) -> None:
    assert usable(MIXED, Wanted(mig=mig)) == expected


def test_every_device_that_is_left_out_says_why() -> None:
    assert reasons(MIXED, Wanted()) == {
        "0": None,
        "1": "MIG is on: its instances are the devices",
        "1:0": None,
        "1:2": None,
    }
    assert reasons(MIXED, Wanted(mig="gpus")) == {
        "0": None,
        "1": "MIG is on: its instances are the devices",
        "1:0": "only whole GPUs are wanted (--mig gpus)",
        "1:2": "only whole GPUs are wanted (--mig gpus)",
    }
    assert reasons(MIXED, Wanted(mig="3g.20gb")) == {
        "0": "it is no MIG instance of profile 3g.20gb",
        "1": "MIG is on: its instances are the devices",
        "1:0": "its profile is not 3g.20gb",
        "1:2": None,
    }


def test_gpu_with_mig_and_no_instance_is_not_handed_out() -> None:
    bare = gpu(0, mig_mode="Enabled")
    assert str(reasons([bare], Wanted())["0"]).startswith("MIG is on, and it has no instances")


def test_instance_of_a_driver_that_tells_no_profile_has_none() -> None:
    old = gpu(0, mig_mode="Enabled", instances=(instance(0, 0, None),))
    assert usable([old], Wanted()) == ["0:0"]
    assert reasons([old], Wanted(mig="1g.5gb"))["0:0"] == "its MIG profile is unknown"


def test_instances_of_a_broken_gpu_are_not_handed_out() -> None:
    broken = replace(SLICED, unusable="GPU requires reset")
    assert set(reasons([broken], Wanted()).values()) == {"GPU requires reset"}


def test_broken_instance_does_not_hide_the_others() -> None:
    half = replace(SLICED, instances=(replace(SLICED.instances[0], unusable="Unknown Error"), SLICED.instances[1]))
    assert usable([half], Wanted()) == ["1:2"]


def test_gpu_whose_instances_are_the_devices_is_not_counted_as_one() -> None:
    assert refusal([SLICED], Wanted(), 3) == "3 wanted, this host has 2"


# ---- the mask -------------------------------------------------------------------------------------


def test_mask_bounds_and_orders() -> None:
    assert usable(HOST, Wanted(mask="2,0")) == ["2", "0"]
    assert reasons(HOST, Wanted(mask="2,0"))["1"] == "hidden by CUDA_VISIBLE_DEVICES=2,0"


def test_empty_mask_hides_all_and_no_mask_none() -> None:
    assert refusal(HOST, Wanted(mask=""), 1) == (
        "1 wanted, only 0 of 4 are usable (GPU 0, 1, 2, 3: hidden by CUDA_VISIBLE_DEVICES=)"
    )
    assert usable(HOST, Wanted()) == ["0", "1", "2", "3"]


def test_mask_of_a_mig_instance_leaves_that_one() -> None:
    assert usable(MIXED, Wanted(mask="MIG-1-2")) == ["1:2"]
    assert usable(MIXED, Wanted(mask="0")) == ["0"]


def test_broken_device_is_broken_whatever_the_mask() -> None:
    host = [gpu(0), gpu(1, unusable="GPU is lost")]
    assert reasons(host, Wanted(mask="0"))["1"] == "GPU is lost"
    assert usable(host, Wanted(mask="1,0")) == ["0"]


def test_long_mask_is_cut_in_the_reason() -> None:
    mask = ",".join(f"GPU-{index}" for index in range(3)) + "," + "x" * 300
    assert reasons(HOST, Wanted(mask=mask))["3"] == "hidden by CUDA_VISIBLE_DEVICES=GPU-0,GPU-1,GPU-2,xxxxxx..."


# ---- filters --------------------------------------------------------------------------------------


def test_memory_filter_takes_what_has_as_much_and_leaves_out_what_is_unknown() -> None:
    host = [gpu(0, memory_total=15360), gpu(1), gpu(2, memory_total=None)]
    assert usable(host, Wanted(min_memory=40960)) == ["1"]
    assert reasons(host, Wanted(min_memory=40960)) == {
        "0": "its memory is 15360 MiB, and 40960 MiB are wanted",
        "1": None,
        "2": "its memory is unknown, and 40960 MiB are wanted",
    }
    assert usable(host, Wanted()) == ["0", "1", "2"]
    assert usable(MIXED, Wanted(min_memory=10000)) == ["0", "1:2"]


def test_name_filter_takes_whole_words() -> None:
    host = [gpu(0, name="NVIDIA A10"), gpu(1, name="NVIDIA A100-SXM4-40GB"), gpu(2, name="NVIDIA H100 80GB HBM3")]
    assert [usable(host, Wanted(name=name)) for name in ("A10", "A100", "h100 80gb")] == [["0"], ["1"], ["2"]]
    assert usable(host, Wanted(name="NVIDIA A100-SXM4-40GB")) == ["1"]
    assert "0 of 3 are usable" in refusal(host, Wanted(name="A1"), 1)


def test_name_filter_takes_any_case() -> None:
    host = [gpu(0, name="Tesla T4"), gpu(1), gpu(2, name=None)]
    assert usable(host, Wanted(name="a100")) == ["1"]
    assert reasons(host, Wanted(name="a100")) == {
        "0": "its name is Tesla T4, and 'a100' is wanted",
        "1": None,
        "2": "its name is unknown, and 'a100' is wanted",
    }


def test_filters_hold_together() -> None:
    host = [gpu(0), gpu(1, memory_total=81920), gpu(2, memory_total=81920, name="NVIDIA H100")]
    assert usable(host, Wanted(min_memory=80000, name="A100", mask="0,1,2")) == ["1"]


def test_refusal_says_each_reason_once() -> None:
    host = [gpu(0, unusable="GPU is lost"), gpu(1), gpu(2, name="Tesla T4"), gpu(3, name="Tesla T4")]
    assert refusal(host, Wanted(name="A100"), 2) == (
        "2 wanted, only 1 of 4 are usable (GPU 0: GPU is lost; GPU 2, 3: its name is Tesla T4, and 'A100' is wanted)"
    )


def test_mask_of_several_instances_is_a_bound_for_several_processes() -> None:
    mask = "MIG-1-2,MIG-1-0"
    shown = visible(mask, MIXED, one_instance=False)
    found = candidates.usable(candidates.listed(MIXED, shown, Wanted(mask=mask)), shown, 2)
    assert [device.place for device in found] == ["1:2", "1:0"]
