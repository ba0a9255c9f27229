"""What a flavor and an image ask of placement: resources and traits, in groups.

The spelling is Nova's: ``resources:CLASS=N`` and ``resources<GROUP>:CLASS=N``, ``trait<GROUP>:NAME=required``
or ``forbidden``, ``group_policy``; images have the ``trait`` ones.  What other properties ask for is said
beside each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec

from kilonova.model.flavor import Flavor
from kilonova.resources.cpu_request import processors
from kilonova.resources.wishes import Wishes

_RESOURCES = re.compile(r"resources([a-zA-Z0-9_-]{0,64}):([A-Z0-9_]{1,255})")
_TRAIT = re.compile(r"trait([a-zA-Z0-9_-]{0,64}):([A-Z0-9_]{1,255})")
_YES = frozenset({"1", "t", "true", "on", "y", "yes"})

ISOLATE = "isolate"


class Group(msgspec.Struct, frozen=True):
    """What one provider must give; the nameless group may be spread over a host's tree."""

    resources: dict[str, int] = {}
    required: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """``root`` is the nameless group; ``groups`` are the others by their suffixes."""

    root: Group
    groups: dict[str, Group] = {}
    isolate: bool = False  # no two groups from one provider

    def together(self) -> dict[str, int]:
        """All resources, as one provider that has everything would give them."""
        result = dict(self.root.resources)
        for group in self.groups.values():
            for name, amount in group.resources.items():
                result[name] = result.get(name, 0) + amount
        return result

    def fits_one_provider(self) -> bool:
        """Whether a host without anything below or beside it could give all of it."""
        return not (self.isolate and len([one for one in self.groups.values() if one.resources]) > 1)


def wanted_of(
    flavor: Flavor,
    properties: Mapping[str, str],
    *,
    image_traits: bool = False,
    disk_format: str | None = None,
    root_disk: bool = True,
) -> Wanted:
    """The request of a server of that flavor and image.

    ``image_traits``: devices that the image asks for are traits, too (``image_metadata_prefilter``);
    ``disk_format``: the host must take images of that kind (``query_placement_for_image_type_support``);
    ``root_disk`` False: its root disk is a volume.  Raises Invalid for what contradicts itself.
    """
    resources: dict[str, dict[str, int]] = {"": _own(flavor, properties, root_disk)}
    required: dict[str, set[str]] = {"": set(_implied(flavor, properties, image_traits))}
    forbidden: dict[str, set[str]] = {}
    if disk_format:
        required[""].add(f"COMPUTE_IMAGE_TYPE_{disk_format.upper()}")
    for suffix, name, amount in _asked(flavor.extra_specs):
        resources.setdefault(suffix, {})[name] = amount
    for source in (flavor.extra_specs, properties):
        for key, value in source.items():
            found = _TRAIT.fullmatch(key)
            if found is not None and value in ("required", "forbidden"):
                side = required if value == "required" else forbidden
                side.setdefault(found[1], set()).add(found[2])
    groups = {
        suffix: Group(
            {name: amount for name, amount in resources.get(suffix, {}).items() if amount},
            frozenset(required.get(suffix, ())),
            frozenset(forbidden.get(suffix, ())),
        )
        for suffix in sorted({*resources, *required, *forbidden})
    }
    root = groups.pop("")
    return Wanted(root=root, groups=groups, isolate=flavor.extra_specs.get("group_policy") == ISOLATE)


def _asked(specs: Mapping[str, str]) -> Iterator[tuple[str, str, int]]:
    for key, value in specs.items():
        found = _RESOURCES.fullmatch(key)
        if found is not None and value.isdecimal():
            yield found[1], found[2], int(value)


def _own(flavor: Flavor, properties: Mapping[str, str], root_disk: bool) -> dict[str, int]:
    """What the flavor's own numbers come to (inventory RT-16, UT-7)."""
    disk = (flavor.root_gb if root_disk else 0) + flavor.ephemeral_gb + -(-flavor.swap_mb // 1024)
    wishes = Wishes(flavor, properties)
    result = {**processors(wishes).resources(), "MEMORY_MB": flavor.memory_mb, "DISK_GB": disk}
    if _yes(flavor.extra_specs.get("hw:mem_encryption")) or _yes(properties.get("hw_mem_encryption")):
        result["MEM_ENCRYPTION_CONTEXT"] = 1
    return result


def _implied(flavor: Flavor, properties: Mapping[str, str], image_traits: bool) -> Iterator[str]:
    """Traits that other words of a flavor or an image stand for, as Nova documents each of them."""

    def said(spec: str, name: str) -> str:
        return flavor.extra_specs.get(spec) or properties.get(name) or ""

    tpm = said("hw:tpm_version", "hw_tpm_version")
    if tpm:
        yield f"COMPUTE_SECURITY_TPM_{tpm.replace('.', '_').upper()}"
    if _yes(said("hw:virtio_packed_ring", "hw_virtio_packed_ring")):
        yield "COMPUTE_NET_VIRTIO_PACKED"
    if _yes(said("hw:firmware_stateless", "hw_firmware_stateless")):
        yield "COMPUTE_SECURITY_STATELESS_FIRMWARE"
    viommu = said("hw:viommu_model", "hw_viommu_model")
    if viommu:
        yield f"COMPUTE_VIOMMU_MODEL_{viommu.upper()}"
    if said("hw:maxphysaddr_mode", "hw_maxphysaddr_mode") == "emulate":
        yield "COMPUTE_ADDRESS_SPACE_EMULATED"
    if image_traits:
        for name, prefix in _DEVICES.items():
            if properties.get(name):
                yield prefix + properties[name].upper().replace("-", "_")


_DEVICES = {
    "hw_disk_bus": "COMPUTE_STORAGE_BUS_",
    "hw_cdrom_bus": "COMPUTE_STORAGE_BUS_",
    "hw_rescue_bus": "COMPUTE_STORAGE_BUS_",
    "hw_video_model": "COMPUTE_GRAPHICS_MODEL_",
    "hw_vif_model": "COMPUTE_NET_VIF_MODEL_",
}


def _yes(text: str | None) -> bool:
    return (text or "").strip().lower() in _YES
