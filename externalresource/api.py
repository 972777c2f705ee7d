"""What the author of a driver imports: `driver` and `Device`, or the hook and the base class that stand behind them.

The names are resolved when they are first used (PEP 562): a driver pays for what it needs.
"""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.coordination import Grants
    from externalresource.drivers.child import LONGEST, Child, Overdue
    from externalresource.drivers.contract import (
        API_VERSION,
        Described,
        ExternalResourceDriver,
        ExternalResourceDriverFactory,
        ExternalResourceInfo,
        NotOfferedError,
        Versioned,
        hookimpl,
    )
    from externalresource.drivers.device import Device, info_of
    from externalresource.drivers.discovery_script import Ended, find_script, run_script
    from externalresource.drivers.enumerated import driver
    from externalresource.drivers.infos import DeviceInfo, order
    from externalresource.drivers.options import Option
    from externalresource.records import record, replace
    from externalresource.yaml_nodes import YamlNode, read_text, read_yaml

__all__ = [
    "API_VERSION",
    "LONGEST",
    "Child",
    "Described",
    "Device",
    "DeviceInfo",
    "Ended",
    "ExternalResourceDriver",
    "ExternalResourceDriverFactory",
    "ExternalResourceInfo",
    "Grants",
    "NotOfferedError",
    "Option",
    "Overdue",
    "Versioned",
    "YamlNode",
    "driver",
    "find_script",
    "hookimpl",
    "info_of",
    "order",
    "read_text",
    "read_yaml",
    "record",
    "replace",
    "run_script",
]

_NAMES = {
    "coordination": "Grants",
    "drivers.child": "LONGEST Child Overdue",
    "drivers.contract": "API_VERSION Described ExternalResourceDriver ExternalResourceDriverFactory"
    " ExternalResourceInfo NotOfferedError Versioned hookimpl",
    "drivers.device": "Device info_of",
    "drivers.discovery_script": "Ended find_script run_script",
    "drivers.enumerated": "driver",
    "drivers.infos": "DeviceInfo order",
    "drivers.options": "Option",
    "records": "record replace",
    "yaml_nodes": "YamlNode read_text read_yaml",
}
__getattr__, __dir__ = face(__name__, _NAMES, root="externalresource")
