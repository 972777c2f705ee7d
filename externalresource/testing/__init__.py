"""The tests that every driver passes: its author inherits them. See docs/write-a-driver.md."""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.testing.conformance import Bench, DriverConformance

__all__ = ["Bench", "DriverConformance"]

__getattr__, __dir__ = face(__name__, {"conformance": "Bench DriverConformance"})
