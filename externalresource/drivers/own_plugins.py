"""The names of our own plugins: the one place where the framework names one."""

from collections.abc import Mapping
from types import MappingProxyType

#: Our own plugins. Their names are ours, whoever else offers them, and need no look at what is installed.
OURS: Mapping[str, str] = MappingProxyType(
    {
        "amd": "externalresource_amd.driver:amd",
        "gpu": "externalresource_gpu.driver:GPUDriverFactory",
        "nvme": "externalresource_nvme.driver:nvme",
        "org.apache.flink.externalresource.gpu.GPUDriverFactory": "externalresource_gpu.driver:GPUDriverFactory",
        "rdma": "externalresource_rdma.driver:rdma",
        "script": "externalresource_script.driver:ScriptDriverFactory",
    }
)
