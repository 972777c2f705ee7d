"""What Flink requests from Kubernetes and YARN for each TaskManager, by the same configuration.

Source: Flink's `KubernetesUtils.getResourceRequirements` and `TaskExecutorProcessSpecContainerResourcePriorityAdapter`.
"""

import os
from collections.abc import Mapping

from externalresource.errors import ConfigurationError
from externalresource.flink import configuration

KUBERNETES, YARN = "kubernetes", "yarn"
TARGETS = (KUBERNETES, YARN)
_MAIN_CONTAINER = "flink-main-container"  # the name of Flink's own in a pod template


def forwarded(
    config: str | os.PathLike[str] | Mapping[str, object] | None = None,
    *,
    to: str,
    overrides: Mapping[str, str] | None = None,
    lenient: bool = False,
) -> dict[str, int]:
    """Return the amount that is requested under each resource key of Kubernetes (`nvidia.com/gpu`) or YARN.

    A resource without a config key is not requested: then the devices must be there anyway. Arguments and errors are
    those of `runtime_context`; two names on one key are an error (with `lenient` the later one wins, as in Flink).
    """
    if to not in TARGETS:
        raise ConfigurationError(f"devices are forwarded to {' or '.join(TARGETS)}, not to {to!r}")
    resources = configuration.load(config, overrides=overrides or {}, lenient=lenient)
    keys = [each.kubernetes_config_key if to == KUBERNETES else each.yarn_config_key for each in resources]
    return {key: resource.amount for key, resource in zip(keys, resources, strict=True) if key is not None}


def pod(requested: Mapping[str, int]) -> dict[str, object]:
    """Return the part of a pod template that requests these amounts for the TaskManager's container.

    Kubernetes wants limits and requests of such resources to be equal, and whole.
    """
    amounts = {key: str(amount) for key, amount in requested.items()}
    container = {"name": _MAIN_CONTAINER, "resources": {"limits": amounts, "requests": dict(amounts)}}
    return {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [container]}}


def template(requested: Mapping[str, int]) -> str:
    """Return that part of a pod template as YAML."""
    import yaml

    return yaml.safe_dump(pod(requested), sort_keys=False)
