"""What `discover` shows: the devices of this host, what speaks against one, and who holds it."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from externalresource.coordination import Holding
from externalresource.coordination.whereabouts import row
from externalresource.drivers.contract import ExternalResourceInfo, properties


def record(info: ExternalResourceInfo, held: Iterable[Holding]) -> dict[str, object]:
    """Return a device for programs."""
    found = _holding(info, held)
    return {**properties(info), **({"held_by": row(found)} if found else {})}


def line(
    info: ExternalResourceInfo, held: Iterable[Holding], columns: Mapping[str, Sequence[str]] | None
) -> dict[str, object]:
    """Return a device for people, by heading.

    `columns` are the driver's own: of each, the first property counts that the device has. A driver without them shows
    all its properties.
    """
    known = properties(info)
    reason = known.pop("unusable", None)
    uuid, used = known.pop("uuid", None), known.pop("in_use", None)
    shown: dict[str, object] = {
        heading: next((known[key] for key in keys if key in known), None)
        for heading, keys in (columns or {key: [key] for key in known}).items()
    }
    found = _holding(info, held)
    holder = "pid {pid} {program}".format_map(row(found)) if found else None
    health = reason or (f"ok, but {used}" if used and not found else "ok")
    index, *others = shown.items()  # what a narrow terminal has no room for is left out from the right
    return dict([index, ("health", health), ("held by", holder), *others, *([("uuid", uuid)] if uuid else [])])


def matrix(infos: Collection[ExternalResourceInfo]) -> list[dict[str, object]]:
    """Return how the devices are connected: a row for each, a column for each; empty if no driver's answer tells."""
    connected = [info for info in infos if info.get_property("links")]
    names = [info.get_property("index") or "" for info in connected]
    return [
        {"": name, **dict(zip(names, (info.get_property("links") or "").split(), strict=True))}
        for name, info in zip(names, connected, strict=True)
    ]


def _holding(info: ExternalResourceInfo, held: Iterable[Holding]) -> Holding | None:
    """Return the living owner's claim of this very device."""
    uuid, index = info.get_property("uuid"), info.get_property("index")
    for holding in held:
        claim = holding.claim
        if holding.living and (claim.uuid == uuid if claim.uuid and uuid else claim.token == index):
            return holding
    return None
