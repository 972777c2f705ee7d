"""What the author of a driver imports: `driver` and `Device`, or the hook and the base class that stand behind them.

The names are resolved when they are first used (PEP 562): a driver pays for what it needs.
"""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.coordination import Grants as Grants
    from externalresource.drivers.child import LONGEST as LONGEST, Child as Child, Overdue as Overdue
    from externalresource.drivers.contract import (
        API_VERSION as API_VERSION,
        Described as Described,
        ExternalResourceDriver as ExternalResourceDriver,
        ExternalResourceDriverFactory as ExternalResourceDriverFactory,
        ExternalResourceInfo as ExternalResourceInfo,
        NotOfferedError as NotOfferedError,
        Versioned as Versioned,
        hookimpl as hookimpl,
    )
    from externalresource.drivers.device import Device as Device, info_of as info_of
    from externalresource.drivers.discovery_script import (
        Ended as Ended,
        find_script as find_script,
        run_script as run_script,
    )
    from externalresource.drivers.enumerated import driver as driver
    from externalresource.drivers.infos import DeviceInfo as DeviceInfo, order as order
    from externalresource.drivers.options import Option as Option
    from externalresource.records import record as record, replace as replace
    from externalresource.yaml_nodes import YamlNode as YamlNode, read_text as read_text, read_yaml as read_yaml

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
__getattr__, __dir__, __all__ = face(__name__, _NAMES, root="externalresource")
