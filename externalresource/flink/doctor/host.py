"""What this host has for its TaskManagers: the devices, the masks over them, and the coordination file."""

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

from externalresource import whereabouts
from externalresource.coordination import Claim, Coordination, in_container, pid_here
from externalresource.drivers import (
    ExternalResourceDriver,
    ExternalResourceInfo,
    NotOfferedError,
    create_driver,
    properties,
)
from externalresource.errors import ConfigurationError, DiscoveryError, ExternalResourceError, PluginError, cause
from externalresource.flink import configuration
from externalresource.flink.config_files import Setting
from externalresource.flink.configuration import GPU_FACTORY, Written
from externalresource.flink.doctor import keys
from externalresource.flink.doctor.findings import WARNING, Finding, Looked, Note, NotLooked
from externalresource.flink.doctor.keys import ARGS, OUR_SCRIPT, PATH, is_flinks, is_ours, text

_GPU = "gpu"
_FLINKS_FILE = "/var/tmp/flink-gpu-coordination"  # noqa: S108 - Flink's default
_MASK, _ORDER, _PCI_ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
_CONTAINER_MASK = "NVIDIA_VISIBLE_DEVICES"
_NO_DEVICE = ("", "none", "void")
_SHOWN = 4  # devices or claims that evidence names

_T = TypeVar("_T")
_Infos = Collection[ExternalResourceInfo]


_COORDINATED = {"enable-coordination-mode": Setting("true")}
#: What is looked at where no resource is configured.
GPUS = Written(_GPU, Setting(_GPU), None, Setting(_GPU), _COORDINATED, forwarded=False)


class Ledger(NamedTuple):
    """A coordination file, and how to ask it."""

    path: str
    held: Callable[[], Collection[Claim]]


def driver(resource: Written) -> ExternalResourceDriver:
    """Return what finds the devices of a resource."""
    if is_flinks(resource):  # of which only that is known that they are GPUs
        return create_driver(_GPU, {})
    if not text(resource.driver_factory):
        raise PluginError("it has no driver")
    if not is_ours(resource):
        raise PluginError("its discovery script is not ours, and does not show them")
    is_flinks_driver = text(resource.driver_factory) == GPU_FACTORY  # which reads no other param
    names = [name for name in resource.params if (name == ARGS if is_flinks_driver else name != PATH)]
    options = {name: text(resource.params[name]) for name in names}
    factory = text(resource.driver_factory)
    return create_driver(factory, options, defaults=configuration.defaults(factory))


def ledger_of(resource: Written) -> Ledger | None:
    """Return where the devices of a resource are coordinated; None if they are not, or nobody knows.

    Raises ExternalResourceError if its options do not tell.
    """
    if not is_ours(resource):
        path = keys.coordination_file(resource, _FLINKS_FILE)
        return Ledger(path, Coordination(path, _GPU).held) if path else None
    found = driver(resource)
    return Ledger(found.coordination_file, partial(_asked, found.held)) if found.coordination_file else None


def _asked(ask: Callable[[], Iterable[_T]]) -> list[_T]:
    """Return a driver's answer; PluginError if it breaks."""
    try:
        return list(ask())
    except ExternalResourceError:
        raise
    except Exception as error:
        raise PluginError(f"its driver failed: {cause(error)}") from error


def devices(resource: Written, environment: Mapping[str, str], order: str | None) -> Iterator[Note]:
    """Look whether the devices are here that each TaskManager is to have; `order` is the CUDA_DEVICE_ORDER of those."""
    name = resource.name
    try:
        found = driver(resource)
        infos = _asked(found.devices)
    except NotOfferedError:
        yield NotLooked(f"devices of {name!r}", "its driver does not show them")
        return
    except ConfigurationError as error:
        where = keys.args_evidence(resource) if ARGS in resource.params else f"{name!r}"
        problem = f"the discovery script of {name!r} refuses its options"
        yield Finding("options", problem, f"{where}: {error}", f"see {OUR_SCRIPT} --help")
        return
    except DiscoveryError as error:
        yield Looked(f"devices of {name!r}")
        yield _not_found(name, str(error), environment)
        return
    except ExternalResourceError as error:
        yield NotLooked(f"devices of {name!r}", str(error))
        return
    yield Looked(f"devices of {name!r}")
    yield from _too_few(name, resource, infos, environment)
    if text(resource.driver_factory) in (GPU_FACTORY, _GPU):
        yield Looked("masks and device order")
        yield from _masks_and_order(resource, infos, environment, environment.get(_ORDER, order))


def coordination(resource: Written) -> Iterator[Note]:
    """Look whether the coordination file can be used, and whether its owners are what they were."""
    try:
        found = ledger_of(resource)
    except ExternalResourceError:  # devices() says so
        return
    if found is None:
        yield NotLooked(f"coordination file of {resource.name!r}", "its script is not told to use one")
        return
    if not os.path.isabs(found.path):
        why = f"{found.path} is relative: it is another file in each folder in which a TaskManager is started"
        yield NotLooked("coordination file", why)
        return
    yield Looked(f"coordination file {found.path}")
    yield from _foreign(found.path)
    try:
        held = found.held()
    except NotOfferedError:
        return
    except PluginError as error:
        yield NotLooked(f"claims in {found.path}", str(error))
        return
    except ExternalResourceError as error:
        problem = "the coordination file cannot be used, so that no TaskManager gets a device"
        remedy = "do what the evidence says; to remove the file would give devices that are in use to others, too"
        yield Finding("coordination-file", problem, str(error), remedy)
        return
    yield from _dead(found.path, held)
    for claim in held:
        if claim.living and claim.flinks:  # it has a pid and nothing else
            yield from _taken_over(found.path, claim)


def _not_found(name: str, message: str, environment: Mapping[str, str]) -> Finding:
    mask = environment.get(_CONTAINER_MASK)
    if mask in _NO_DEVICE:
        return Finding(
            "container-mask",
            "this container was started without GPUs",
            f"{_CONTAINER_MASK}={mask}; {message}",
            "docker run --gpus all, or a limit nvidia.com/gpu for the container on Kubernetes",
        )
    remedy = "make nvidia-smi work for this user here, in a container as well; or look on the host of the TaskManagers"
    return Finding("devices", f"the devices of {name!r} cannot be found", message, remedy)


def _too_few(name: str, resource: Written, infos: _Infos, environment: Mapping[str, str]) -> Iterator[Finding]:
    wanted = max(1, keys.amount(resource) or 1)
    known = [properties(info) for info in infos]
    reasons = {each.get("place") or each.get("index"): each.get("unusable") for each in known}
    usable = sum(reason is None for reason in reasons.values())
    if usable >= wanted:
        return
    if not infos:
        yield _not_found(name, f"this host has no device of {name!r}", environment)
        return
    out: dict[str, list[str]] = {}
    for device, reason in reasons.items():
        if reason is not None:
            out.setdefault(reason, []).append(device or "?")
    masked = any(_MASK in reason for reason in out)
    seen = [f"{', '.join(several)}: {reason}" for reason, several in out.items()][:_SHOWN]
    asked = f"{keys.key(resource, 'amount')}: {wanted}; " if resource.amount else ""
    yield Finding(
        "container-mask" if masked else "devices",
        f"{wanted} of {name!r} wanted for each TaskManager, {usable} of {len(infos)} on this host can be used",
        asked + ("; ".join(seen) or f"this host has {len(infos)}"),
        f"unset {_MASK} for the TaskManagers, or name more devices in it"
        if masked
        else "ask for less, or mend what speaks against the others (see externalresource discover)",
    )


def _masks_and_order(
    resource: Written, infos: _Infos, environment: Mapping[str, str], order: str | None
) -> Iterator[Finding]:
    known = map(properties, infos)
    kinds = {each["name"] for each in known if "name" in each and "mig.profile" not in each}
    if len(kinds) > 1 and order != _PCI_ORDER:
        yield Finding(
            "device-order",
            "an index means one GPU to Flink and may mean another one to CUDA, which counts the fastest first",
            f"GPUs of several kinds: {', '.join(sorted(kinds))}; {_ORDER} is {order or 'not set'}",
            f"export {_ORDER}={_PCI_ORDER} for the TaskManagers (on Kubernetes and YARN "
            f"containerized.taskmanager.env.{_ORDER}: {_PCI_ORDER})",
            severity=WARNING,
        )
    mask = environment.get(_MASK)
    if mask is not None and is_flinks(resource):
        yield Finding(
            "container-mask",
            f"Flink's script hands out devices that {_MASK} hides: it does not look at it",
            f"{_MASK}={mask} in the environment",
            f"unset it for the TaskManagers, or use the script {OUR_SCRIPT}",
            severity=WARNING,
        )


def _foreign(path: str) -> Iterator[Finding]:
    """Look whether this user may read the file, and replace it: each script makes a new one beside it."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        problem = "the coordination file has no folder: no TaskManager gets a device"
        yield Finding("coordination-file", problem, f"{folder} is no folder", f"mkdir -p {folder}")
        return
    for place in (folder, path, f"{path}.lock"):
        if os.path.lexists(place) and not _may_use(place, folder, path):
            status = os.stat(place, follow_symlinks=False)
            yield Finding(
                "coordination-file",
                "the coordination file is another user's: no TaskManager of this user gets a device",
                f"{place} belongs to uid {status.st_uid} (mode {stat.S_IMODE(status.st_mode):04o}), this is uid "
                f"{os.geteuid()}",
                "run all TaskManagers as one user, or, once none of them lives, name a file in a folder that all of "
                "them may write and that is not sticky: --coordination-file /path",
            )
            return


def _may_use(place: str, folder: str, path: str) -> bool:
    """Return whether this user may do with the folder, the file in it and the lock beside that what a claim does."""
    if not os.access(place, os.W_OK if place == folder else os.R_OK):
        return False
    status, user = os.stat(folder), os.geteuid()
    is_sticky = place == path and status.st_mode & stat.S_ISVTX
    return not is_sticky or user in (0, status.st_uid, os.stat(place, follow_symlinks=False).st_uid)


def _dead(path: str, held: Collection[Claim]) -> Iterator[Finding]:
    rows = [whereabouts.row(claim, claim.holders[0]) for claim in held if not claim.living]
    if not rows:
        return
    shown = "; ".join(f"{row['device']} of pid {row['pid']}, since {row['since'] or '?'}" for row in rows[:_SHOWN])
    more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    yield Finding(
        "stale-claims",
        "the coordination file has claims of processes that have ended: our script hands such devices out again, and "
        "Flink's own may hand them out twice",
        f"{path}: {shown}{more}",
        f"externalresource release --dead --coordination-file {path}",
        severity=WARNING,
    )


def _taken_over(path: str, claim: Claim) -> Iterator[Finding]:
    """Of Flink's script only a pid is known: somebody else has it now, or it means nothing here."""
    device, (holder,) = claim.token, claim.holders
    pid, program = holder.process.pid, whereabouts.row(claim, holder)["program"]
    if in_container() and pid_here(holder.process) is None:
        problem = f"device {device} may stay taken for good: its owner's pid means nothing in this container"
    elif program not in (None, "java"):  # a TaskManager in Python may have run the script as well
        problem = f"device {device} stays taken as long as {program} runs, which has its owner's pid"
    else:
        return
    yield Finding(
        "foreign-claims",
        problem,
        f"{path}: {claim.line}, and pid {pid} is {program or 'unknown'}",
        f"only if pid {pid} does not use the device: externalresource release --device {device} --force "
        f"--coordination-file {path}",
        severity=WARNING,
    )
