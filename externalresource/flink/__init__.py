"""What is Flink's: its configuration, its TaskManagers, the Python workers of these."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.flink.operators import environment, find_task_manager, get_external_resource_infos

__all__ = ["environment", "find_task_manager", "get_external_resource_infos"]

_HOME = {
    "environment": "operators",
    "find_task_manager": "operators",
    "get_external_resource_infos": "operators",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
