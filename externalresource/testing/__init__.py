"""The tests that every driver passes: its author inherits them. See docs/write-a-driver.md."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.testing.conformance import Bench, DriverConformance

__all__ = ["Bench", "DriverConformance"]

_HOME = {
    "Bench": "conformance",
    "DriverConformance": "conformance",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
