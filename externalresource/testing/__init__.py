"""The tests that every driver passes: its author inherits them. See docs/write-a-driver.md."""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.testing.conformance import Bench as Bench, DriverConformance as DriverConformance

__getattr__, __dir__, __all__ = face(__name__, {"conformance": "Bench DriverConformance"})
