"""The discovered devices as Flink, Spark, a shell or a program wants them."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from externalresource_gpu.device import Device

    #: What is known of a device besides itself, by its place: `ordinal`, `links`, `in_use`.
    More = Mapping[str, Mapping[str, str]]


def render(dialect: str, devices: "Sequence[Device]", more: "More | None" = None) -> str:
    """Return what goes to stdout: one line, but for `env`; nothing for no devices in Flink's dialect.

    In Flink's and Spark's dialects an ordinal stands for the index, if `more` has one.
    """
    return _DIALECTS[dialect](devices, more or {})


def properties(devices: "Sequence[Device]", more: "More") -> "list[dict[str, str]]":
    """Return what is known of each device."""
    return [{**device.properties(), **more.get(device.place, {})} for device in devices]


def environment(names: "Sequence[tuple[str | None, str]]") -> dict[str, str]:
    """Return the variables for a process that is to see exactly these GPUs, by UUID and token, in this order.

    A mask names a device by its UUID, but for that of a Jetson, which CUDA does not take there.

    An index means to CUDA what it means to nvidia-smi only with CUDA_DEVICE_ORDER=PCI_BUS_ID. No GPUs is an empty mask:
    an unset one would be all.
    """
    mask = ",".join(uuid if uuid and uuid.startswith(("GPU-", "MIG-")) else token for uuid, token in names)
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": mask,
        "NVIDIA_VISIBLE_DEVICES": mask or "void",
    }


def _flink(devices: "Sequence[Device]", more: "More") -> str:
    return _line(",".join(_tokens(devices, more)))


def _uuid(devices: "Sequence[Device]", _more: "More") -> str:
    return _line(",".join(device.uuid or device.token for device in devices))


def _env(devices: "Sequence[Device]", _more: "More") -> str:
    variables = environment([(device.uuid, device.token) for device in devices])
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def _json(devices: "Sequence[Device]", more: "More") -> str:
    import json

    return _line(json.dumps(properties(devices, more)))


def _spark(devices: "Sequence[Device]", more: "More") -> str:
    import json

    return _line(json.dumps({"name": "gpu", "addresses": _tokens(devices, more)}))


def _tokens(devices: "Sequence[Device]", more: "More") -> list[str]:
    return [more.get(device.place, {}).get("ordinal", device.token) for device in devices]


def _line(text: str) -> str:
    return f"{text}\n" if text else ""


_DIALECTS = {"flink": _flink, "uuid": _uuid, "env": _env, "json": _json, "spark": _spark}
