"""What is Flink's: its configuration, its TaskManagers, the Python workers of these."""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.flink.operators import (
        environment as environment,
        find_task_manager as find_task_manager,
        get_external_resource_infos as get_external_resource_infos,
    )

__getattr__, __dir__, __all__ = face(
    __name__, {"operators": "environment find_task_manager get_external_resource_infos"}
)
