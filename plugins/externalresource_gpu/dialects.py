"""The discovered devices as Flink, Spark, a shell or a program wants them."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from externalresource_gpu.device import Device


def render(dialect: str, devices: "Sequence[Device]") -> str:
    """Return what goes to stdout: one line, but for `env`; nothing for no devices in Flink's dialect."""
    return _DIALECTS[dialect](devices)


def environment(uuids_or_indices: "Sequence[str]") -> dict[str, str]:
    """Return the variables for a process that is to see exactly these GPUs, in this order.

    An index means to CUDA what it means to nvidia-smi only with CUDA_DEVICE_ORDER=PCI_BUS_ID. No GPUs is an empty mask:
    an unset one would be all.
    """
    mask = ",".join(uuids_or_indices)
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": mask,
        "NVIDIA_VISIBLE_DEVICES": mask or "void",
    }


def _flink(devices: "Sequence[Device]") -> str:
    return _line(",".join(device.token for device in devices))


def _uuid(devices: "Sequence[Device]") -> str:
    return _line(",".join(device.uuid or device.token for device in devices))


def _env(devices: "Sequence[Device]") -> str:
    variables = environment([device.uuid or device.token for device in devices])
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def _json(devices: "Sequence[Device]") -> str:
    import json

    return _line(json.dumps([device.properties() for device in devices]))


def _spark(devices: "Sequence[Device]") -> str:
    import json

    return _line(json.dumps({"name": "gpu", "addresses": [device.token for device in devices]}))


def _line(text: str) -> str:
    return f"{text}\n" if text else ""


_DIALECTS = {"flink": _flink, "uuid": _uuid, "env": _env, "json": _json, "spark": _spark}
