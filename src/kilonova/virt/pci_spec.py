"""``[pci]device_spec``: which devices of a host guests may have, and what is said of them.

The forms are Nova's: a JSON object with vendor_id, product_id, and one of address (text with ``*``, or an
object of regular expressions) and devname; all other keys are tags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from kilonova.errors import Failed
from kilonova.model.pci import PF, VF, PciDevice
from kilonova.resources.pci_request import resource_class, trait

OPTION = "[pci]device_spec"
_FLAGS = {"true": "true", "yes": "true", "on": "true", "1": "true", "t": "true", "y": "true"}
_NO = frozenset({"false", "no", "off", "0", "f", "n"})
_ID = re.compile(r"(0x)?([0-9a-f]{1,4})")
_ADDRESS = re.compile(r"(?:(?:([^:.]*):)?([^:.]*):)?([^:.]*)(?:\.([^:.]*))?")
_PARTS = ("domain", "bus", "slot", "function")
_LARGEST = {"domain": 0xFFFFFF, "bus": 0xFF, "slot": 0x1F, "function": 7}
_LONGEST = {"domain": 4, "bus": 2, "slot": 2, "function": 1}
_OURS = ("vendor_id", "product_id", "address", "devname")
_SWITCHES = ("remote_managed", "live_migratable", "one_time_use", "managed")
_LONGEST_REGEX = 200

Names = tuple[str, str, str, str]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A device as the host has it, with the network interfaces on it and on its physical function."""

    device: PciDevice
    interfaces: tuple[str, ...] = ()
    parent_interfaces: tuple[str, ...] = ()


class Spec:
    """One entry of the option."""

    def __init__(
        self,
        ids: tuple[str, str],
        matches: Callable[[Found], bool],
        tags: dict[str, str],
        text: str,
        devname: str | None = None,
    ) -> None:
        self.vendor_id, self.product_id = ids  # or "*"
        self._matches = matches
        self.tags = tags
        self.text = text
        self.devname = devname

    def matches(self, found: Found) -> bool:
        device = found.device
        return (
            self.vendor_id in ("*", device.vendor_id)
            and self.product_id in ("*", device.product_id)
            and self._matches(found)
        )


def read_specs(texts: Sequence[str]) -> tuple[Spec, ...]:
    """Each text is an object, or a list of objects.  Raises Failed."""
    found = []
    for text in texts:
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise Failed(f"{OPTION} = {text}: this is no JSON: {error}") from error
        found += [_spec(each, text) for each in (value if isinstance(value, list) else [value])]
    return tuple(found)


def choose(specs: Sequence[Spec], devices: Sequence[Found]) -> tuple[PciDevice, ...]:
    """The devices that guests may have, each with the tags of the first entry that matches it.

    Raises Failed when an entry says of a device what cannot be.
    """
    chosen = []
    for found in devices:
        spec = next((each for each in specs if each.matches(found)), None)
        if spec is not None:
            _check_remote(spec, found.device)
            chosen.append(msgspec.structs.replace(found.device, tags={**found.device.tags, **spec.tags}))
    return tuple(sorted(chosen, key=lambda each: each.address))


def _check_remote(spec: Spec, device: PciDevice) -> None:
    if spec.tags.get("remote_managed") == "true" and device.kind == PF:
        _wrong(
            spec.text, f"{device.address} is a physical function, and only virtual ones are remote_managed"
        )


def _wrong(text: str, what: str) -> NoReturn:
    raise Failed(f"{OPTION} = {text}: {what}.")


def _spec(value: object, text: str) -> Spec:
    if not isinstance(value, dict):
        _wrong(text, "it has to be a JSON object")
    if not value:
        _wrong(text, "it says nothing: {} would mean every device of the host")
    devname, address = value.get("devname"), value.get("address")
    if devname is not None and address is not None:
        _wrong(text, "devname and address exclude each other")
    if devname is not None and (not isinstance(devname, str) or not devname):
        _wrong(text, "devname has to be the name of a network interface")
    matches = _by_name(devname) if devname is not None else _by_address(address, text)
    ids = (_id(value, "vendor_id", text), _id(value, "product_id", text))
    return Spec(ids, matches, _tags(value, text), text, devname)


def _id(value: dict[str, object], key: str, text: str) -> str:
    given = value.get(key, "*")
    if given == "*":
        return "*"
    match = _ID.fullmatch(given.strip().lower()) if isinstance(given, str) else None
    if match is None:
        _wrong(text, f"{key} has to be four hexadecimal digits or '*', not {given!r}")
    return match[2].rjust(4, "0")


def _tags(value: dict[str, object], text: str) -> dict[str, str]:
    found = {}
    for key, given in value.items():
        if key in _OURS or (given is None and key == "physical_network"):
            continue  # a null physical network: one that is made of tunnels
        if isinstance(given, bool):
            given = "true" if given else "false"
        if not isinstance(given, str):
            _wrong(text, f"{key} has to be a text")
        found[key] = _switch(key, given, text) if key in (*_SWITCHES, "trusted") else given
    if "resource_class" in found:
        found["resource_class"] = resource_class(found["resource_class"])
    if "traits" in found:
        names = (each for each in found["traits"].split(",") if each.strip())
        found["traits"] = ",".join(sorted({trait(each) for each in names}))
    return found


def _switch(key: str, given: str, text: str) -> str:
    word = given.strip().lower()
    if word not in _FLAGS and word not in _NO:
        _wrong(text, f"{key} is '{given}'; it has to be true or false")
    if key == "managed":  # libvirt's word
        return "yes" if word in _FLAGS else "no"
    return "true" if word in _FLAGS else "false"


# ---- addresses ----


def parts(address: str) -> Names:
    """domain, bus, slot and function of a whole address."""
    domain, bus, rest = address.lower().split(":")
    slot, _, function = rest.partition(".")
    return domain, bus, slot, function


def _by_name(devname: str) -> Callable[[Found], bool]:
    """The device with that interface, and the virtual functions of that device."""
    return lambda found: (
        devname in found.interfaces or (found.device.kind == VF and devname in found.parent_interfaces)
    )


def _by_address(address: object, text: str) -> Callable[[Found], bool]:
    if address is None:
        return lambda found: True
    if isinstance(address, str):
        return _by_pattern(address.strip().lower(), text)
    if isinstance(address, dict):
        return _by_regexes(address, text)
    _wrong(text, "address has to be a text or an object")


def _by_pattern(address: str, text: str) -> Callable[[Found], bool]:
    match = _ADDRESS.fullmatch(address)
    if match is None:
        _wrong(text, f"'{address}' is no PCI address (domain:bus:slot.function)")
    wanted = tuple(
        _part(name, given or "*", text) for name, given in zip(_PARTS, match.groups(), strict=True)
    )

    def matches(found: Found) -> bool:
        device = found.device
        own = all(want in ("*", part) for want, part in zip(wanted, parts(device.address), strict=True))
        of_parent = device.parent is not None and parts(device.parent) == wanted
        return own or of_parent  # a physical function that is named whole stands for its virtual ones

    return matches


def _part(name: str, given: str, text: str) -> str:
    if given == "*":
        return given
    if not re.fullmatch(r"[0-9a-f]{1,6}", given) or int(given, 16) > _LARGEST[name]:
        _wrong(text, f"the {name} '{given}' is not hexadecimal, or above {_LARGEST[name]:x}")
    return f"{int(given, 16):0{_LONGEST[name]}x}"


def _by_regexes(address: dict[str, object], text: str) -> Callable[[Found], bool]:
    odd = sorted(set(address) - set(_PARTS))
    if odd:
        _wrong(text, f"an address has {', '.join(_PARTS)}, not {', '.join(odd)}")
    wanted = [_regex(name, address.get(name, ".*"), text) for name in _PARTS]

    def matches(found: Found) -> bool:
        each = zip(wanted, parts(found.device.address), strict=True)
        return all(want.fullmatch(part) for want, part in each)

    return matches


def _regex(name: str, given: object, text: str) -> re.Pattern[str]:
    if not isinstance(given, str) or len(given) > _LONGEST_REGEX:
        _wrong(text, f"the {name} has to be a regular expression")
    try:
        return re.compile(given, re.IGNORECASE)
    except re.error as error:
        _wrong(text, f"the {name} '{given}' is no regular expression: {error}")
