"""The face of a package: its public names, each imported when it is first used (PEP 562)."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    _Face = tuple[Callable[[str], object], Callable[[], list[str]], list[str]]


def face(package: str, names: "Mapping[str, str]", *, root: str | None = None) -> "_Face":
    """Return `__getattr__`, `__dir__` and `__all__` of a package.

    `names` are those of each module in `root`, blanks between.
    """
    homes = {name: module for module, several in names.items() for name in several.split()}

    def resolve(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Not importlib, whose own import would cost the discovery script a millisecond.
        return getattr(__import__(f"{root or package}.{homes[name]}", fromlist=[name]), name)

    return resolve, lambda: sorted(homes), sorted(homes)
