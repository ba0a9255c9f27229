"""The PCI devices that a flavor asks for, by the aliases of ``[pci]alias`` (Nova's JSON form).

An alias that is given several times has several kinds of device, any of which will do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from kilonova.errors import Invalid
from kilonova.model.flavor import Flavor
from kilonova.model.pci import PCI, PciRequest
from kilonova.resources.wishes import Wishes

REQUIRED, PREFERRED, LEGACY, SOCKET = "required", "preferred", "legacy", "socket"
POLICIES = (REQUIRED, PREFERRED, LEGACY, SOCKET)
FLAVOR_KEY = "pci_passthrough:alias"
MOST_DEVICES = 256  # of one request

_ASKED = re.compile(r"\s*([^:]+?)\s*:\s*(\d{1,9})\s*", re.ASCII)
_Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{4}\Z")]


class _Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One value of ``[pci]alias``."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    capability_type: Literal["pci"] = "pci"
    vendor_id: _Hex | None = None
    product_id: _Hex | None = None
    device_type: Literal["type-PCI", "type-PF", "type-VF"] | None = None
    numa_policy: Literal["required", "preferred", "legacy", "socket"] | None = None
    resource_class: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    traits: str | None = None
    live_migratable: str | bool | None = None


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """Devices by a name: ``specs`` are alternatives, each with the tags that a device must match."""

    name: str
    numa_policy: str | None
    specs: tuple[dict[str, str], ...]


def read_aliases(texts: Sequence[str]) -> dict[str, Alias]:
    """The aliases by name.  Raises Invalid for a value that is none, or that contradicts another."""
    result: dict[str, Alias] = {}
    for text in texts:
        entry = _entry(text)
        before = result.get(entry.name)
        if before is None:
            result[entry.name] = Alias(
                name=entry.name, numa_policy=entry.numa_policy, specs=(_spec(text, entry),)
            )
            continue
        if entry.numa_policy != before.numa_policy:
            raise Invalid(f"[pci]alias '{entry.name}' is given with two numa_policies; it can have one.")
        spec = _spec(text, entry)
        if spec["dev_type"] != before.specs[0]["dev_type"]:
            raise Invalid(f"[pci]alias '{entry.name}' is given with two device_types; it can have one.")
        result[entry.name] = msgspec.structs.replace(before, specs=(*before.specs, spec))
    return result


def _entry(text: str) -> _Entry:
    try:
        return msgspec.json.decode(text, type=_Entry)
    except msgspec.DecodeError as error:  # ValidationError is one of these
        raise Invalid(f"[pci]alias {text[:200]} is not valid: {error}.") from error


def _spec(text: str, entry: _Entry) -> dict[str, str]:
    """The tags that a device must have; ids in lower case."""
    if entry.resource_class is None and (entry.vendor_id is None or entry.product_id is None):
        raise Invalid(f"[pci]alias {text[:200]} needs vendor_id and product_id, or resource_class.")
    spec = {"dev_type": entry.device_type or PCI}
    for key, value in (("vendor_id", entry.vendor_id), ("product_id", entry.product_id)):
        if value is not None:
            spec[key] = value.lower()
    if entry.resource_class is not None:
        spec["resource_class"] = resource_class(entry.resource_class)
    if entry.traits:
        spec["traits"] = ",".join(sorted({trait(each) for each in entry.traits.split(",") if each.strip()}))
    if entry.live_migratable is not None:
        spec["live_migratable"] = "true" if _yes(entry.live_migratable) else "false"
    return spec


def _yes(value: str | bool) -> bool:
    word = value if isinstance(value, bool) else value.strip().lower()
    if word in (True, "yes", "true", "1", "on"):
        return True
    if word in (False, "no", "false", "0", "off"):
        return False
    raise Invalid(f"live_migratable of a [pci]alias is '{value}': it must be yes or no.")


def resource_class(text: str) -> str:
    """A name as placement knows it: standard, or ``CUSTOM_`` and what the operator wrote, in capitals."""
    return _normal(text, "CUSTOM_", ("PGPU", "VGPU", "FPGA", "PCI_DEVICE", "SRIOV_NET_VF"))


def trait(text: str) -> str:
    """A trait's name, with ``CUSTOM_`` before what is no standard one."""
    word = _capitals(text)
    return (
        word
        if word.startswith(("CUSTOM_", "HW_", "COMPUTE_", "STORAGE_", "MISC_", "OWNER_"))
        else "CUSTOM_" + word
    )


def _normal(text: str, prefix: str, known: tuple[str, ...]) -> str:
    word = _capitals(text)
    return word if word in known or word.startswith(prefix) else prefix + word


def _capitals(text: str) -> str:
    return re.sub(r"[^A-Z0-9_]", "_", text.strip().upper())


def of_flavor(
    flavor: Flavor, properties: Mapping[str, str], aliases: Mapping[str, Alias]
) -> tuple[PciRequest, ...]:
    """The devices that a flavor asks for.  Raises Invalid for an alias that nobody has defined."""
    text = flavor.extra_specs.get(FLAVOR_KEY)
    if not text or not text.strip():
        return ()
    policy = numa_policy(flavor, properties)
    found = []
    for number, part in enumerate(text.split(",")):
        asked = _ASKED.fullmatch(part)
        if asked is None or not 1 <= int(asked[2]) <= MOST_DEVICES:
            raise Invalid(
                f"{FLAVOR_KEY} '{text}' is not valid: it is NAME:COUNT, several with commas between, and "
                f"a count is from 1 to {MOST_DEVICES}."
            )
        alias = aliases.get(asked[1])
        if alias is None:
            raise Invalid(f"PCI alias {asked[1]} is not defined.")
        found.append(
            PciRequest(
                id=f"flavor-{number}",
                count=int(asked[2]),
                specs=alias.specs,
                alias=alias.name,
                numa_policy=policy or alias.numa_policy,
            )
        )
    return tuple(found)


def numa_policy(flavor: Flavor, properties: Mapping[str, str]) -> str | None:
    """What flavor and image say of devices and cells, above what the alias says.  Raises Invalid."""
    wishes = Wishes(flavor, properties)
    flavors, images = wishes.one_of("pci_numa_affinity_policy", POLICIES)
    if flavors and images and flavors != images:
        wishes.forbid_image("pci_numa_affinity_policy")
    return flavors or images
