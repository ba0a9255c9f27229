"""What an image asks of a host, and hosts that are kept for certain images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from kilonova.model.host import Host
from kilonova.scheduler.columns import Mask
from kilonova.scheduler.question import Filter, Question

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "i386": "i686"}
_MODES = {"hvm": "hvm", "hv": "hvm", "xen": "xen", "xenpv": "xen", "uml": "uml", "exe": "exe"}
_COMPARED = ("architecture", "type", "mode", "version")


def _wanted(question: Question) -> dict[str, str]:
    properties = question.request.image_properties

    def said(*names: str) -> str:
        return next((properties[name] for name in names if properties.get(name)), "")

    default = question.options.image_properties_default_architecture
    return {
        "architecture": said("hw_architecture", "architecture") or default or "",
        "type": said("img_hv_type", "hypervisor_type"),
        "mode": said("hw_vm_mode", "vm_mode"),
        "version": said("img_hv_requested_version", "hypervisor_version_requires"),
    }


def _concerned(question: Question) -> Hashable | None:
    found = tuple(_wanted(question).values())
    return found if any(found) else None


def _refusal(wanted: Mapping[str, str], host: Host) -> str:
    """Why the image cannot run there; empty when it can."""
    have = str(host.cpu_info.get("arch") or "")
    if wanted["architecture"] and have:
        architecture = _ARCHITECTURES.get(wanted["architecture"].lower(), wanted["architecture"].lower())
        if architecture != have:
            return f"its CPUs are {have}, the image is for {wanted['architecture']}"
    kind, hypervisor = wanted["type"].lower(), host.hypervisor_type.lower()
    if kind and kind != hypervisor and not {kind, hypervisor} <= {"kvm", "qemu"}:
        return f"its hypervisor is {hypervisor}, the image is for {wanted['type']}"
    mode = wanted["mode"].lower()
    if mode and _MODES.get(mode, mode) != "hvm":
        return f"it runs full virtual machines, the image is for the mode '{wanted['mode']}'"
    if wanted["version"] and not version_matches(host.hypervisor_version, wanted["version"]):
        return f"its hypervisor's version is {_version_text(host)}, the image asks for {wanted['version']}"
    return ""


def _version_text(host: Host) -> str:
    return ".".join(str(part) for part in _parts(host.hypervisor_version))


def _parts(version: int) -> tuple[int, ...]:
    """6002001 is 6.2.1, as libvirt counts."""
    return version // 1_000_000, version // 1000 % 1000, version % 1000


def version_matches(version: int, requirement: str) -> bool:
    """Whether all of ``>=6.2,!=6.2.3,<8`` hold.  What is no requirement does not hold."""
    have = _parts(version)
    return all(_one_matches(have, one.strip()) for one in requirement.split(","))


def _one_matches(have: tuple[int, ...], requirement: str) -> bool:
    digits = requirement.lstrip("<>=!")
    sign = requirement[: len(requirement) - len(digits)] or "=="
    parts = digits.strip().split(".")
    if not all(part.isdecimal() and len(part) < 10 for part in parts) or len(parts) > 3:
        return False
    wanted = tuple(int(part) for part in parts) + (0,) * (3 - len(parts))
    return {
        "==": have == wanted,
        "=": have == wanted,
        "!=": have != wanted,
        "<": have < wanted,
        "<=": have <= wanted,
        ">": have > wanted,
        ">=": have >= wanted,
    }.get(sign, False)


def _runs(question: Question, among: Mask) -> Mask:
    wanted, columns = _wanted(question), question.columns
    mask = np.zeros(columns.room, np.bool_)
    known: dict[tuple[object, ...], bool] = {}
    for row in columns.row_of.values():
        host = columns.record(row)
        kind = (host.cpu_info.get("arch"), host.hypervisor_type, host.hypervisor_version)
        if kind not in known:
            known[kind] = not _refusal(wanted, host)
        mask[row] = known[kind]
    return mask


IMAGE_PROPERTIES = Filter(
    "ImagePropertiesFilter",
    _concerned,
    _runs,
    lambda question, row: _refusal(_wanted(question), question.columns.record(row)),
    fixed=True,
)


def _isolation(question: Question) -> Hashable | None:
    options = question.options
    return (question.request.image_id,) if options.isolated_hosts or options.isolated_images else None


def _isolated_mask(question: Question, among: Mask) -> Mask:
    """Images on the list go to hosts on the list; with the restriction no others go there."""
    options, columns = question.options, question.columns
    isolated = np.zeros(columns.room, np.bool_)
    isolated[[columns.row_of[name] for name in options.isolated_hosts if name in columns.row_of]] = True
    listed = question.request.image_id in options.isolated_images
    if listed:
        return isolated
    free = not options.restrict_isolated_hosts_to_isolated_images
    return np.ones(columns.room, np.bool_) if free else ~isolated


def _why_isolated(question: Question, row: int) -> str:
    if question.request.image_id in question.options.isolated_images:
        return "the image is for isolated hosts, and it is none"
    return "it is an isolated host, and the image is not one that may use it"


ISOLATED_HOSTS = Filter("IsolatedHostsFilter", _isolation, _isolated_mask, _why_isolated, fixed=True)
