"""What tests of the configuration say."""

from collections.abc import Callable, Mapping

import pytest

from externalresource.errors import ConfigurationError
from externalresource.flink.configuration import ResourceConfig, load

GPU_TEXT = "external-resources: gpu\nexternal-resource.gpu.amount: 2\n"
GPU = {"external-resources": "gpu", "external-resource.gpu.amount": "2"}
#: All that can be said of resources.
FULL = """
external-resources: [gpu, fpga]
external-resource:
  gpu:
    amount: 2
    driver-factory.class: org.apache.flink.externalresource.gpu.GPUDriverFactory
    param:
      discovery-script:
        path: /opt/discover   # a comment
        args: "--enable-coordination-mode --coordination-file /x"
    kubernetes.config-key: nvidia.com/gpu
    yarn.config-key: yarn.io/gpu
external-resource.fpga.amount: 1
"""
Write = Callable[..., str]


def names(*resources: ResourceConfig) -> list[str]:
    return [resource.name for resource in resources]


def amounts(*listed: str) -> dict[str, object]:
    return {f"external-resource.{name}.amount": 1 for name in listed}


def refusal(source: str | Mapping[str, object], *overrides: str, lenient: bool = False) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(source, overrides=overrides, lenient=lenient)
    message = str(caught.value)
    assert "\n" not in message
    return message
