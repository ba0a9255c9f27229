"""What an operator adds to the providers of a host: files of YAML, schema 1.0 of Nova's provider config.

A file that is wrong in any way stops the service from starting, with its name, line and column; of several
files nothing is taken over until all of them are right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
import structlog

from kilonova.errors import Failed
from kilonova.resources.yaml_places import Place, read

log = structlog.get_logger("kilonova.resources")

COMPUTE_NODE = "$COMPUTE_NODE"
"""Stands for every root provider with the trait COMPUTE_NODE that no other entry names."""
MINOR = 0  # the newest version of the schema that we know is 1.MINOR

_VERSION = re.compile(r"(\d+)\.(\d+)", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NAME = re.compile(r"[A-Z0-9_]{1,255}")
_LONGEST_NAME = 200
_MOST = 2**31 - 1
_LEAST = {"total": 1, "reserved": 0, "min_unit": 1, "max_unit": 1, "step_size": 1}
_LARGEST_RATIO = 3.40282e38  # placement's: what a single-precision number holds
_SOURCE = "__source_file"


class ProviderExtra(msgspec.Struct, frozen=True, kw_only=True):
    """What is added to one provider.

    It has a ``uuid`` (lower case, or COMPUTE_NODE) or a ``name``.  ``inventories`` are records in placement's
    words; keys that are not given have placement's defaults.
    """

    uuid: str | None = None
    name: str | None = None
    inventories: dict[str, dict[str, int | float]] = {}
    traits: tuple[str, ...] = ()
    source: str = ""

    @property
    def shown(self) -> str:
        return f"uuid '{self.uuid}'" if self.uuid else f"name '{self.name}'"


def load(directory: Path) -> tuple[ProviderExtra, ...]:
    """All that the files ``*.yaml`` of a directory say, in the order of their names.

    Raises Failed for the first thing that is wrong.
    """
    try:
        files = sorted(each for each in directory.iterdir() if each.name.endswith(".yaml"))
    except FileNotFoundError:
        files = []
    except OSError as error:
        raise Failed(
            f"The provider configuration in {directory} cannot be read: {error.strerror}."
        ) from error
    if not files:
        log.info("there is no provider configuration", directory=str(directory))
    return unique(each for file in files for each in parse(str(file), _content(file)))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Failed(f"{file}: the provider configuration cannot be read: {error.strerror}.") from error


def unique(extras: Iterable[ProviderExtra]) -> tuple[ProviderExtra, ...]:
    """Raises Failed when two say something of the same provider."""
    found: dict[tuple[str | None, str | None], ProviderExtra] = {}
    for each in extras:
        other = found.setdefault((each.uuid, each.name), each)
        if other is not each:
            where = sorted({other.source, each.source})
            raise Failed(f"The provider with {each.shown} is configured twice, in {' and '.join(where)}.")
    return tuple(found.values())


def parse(file: str, data: bytes) -> list[ProviderExtra]:
    """What one file says.  ``file`` is its name, for errors.  Raises Failed."""
    document = read(file, data)
    fields = _mapping(document, "a provider configuration")
    _check_version(_required(document, fields, "meta"))
    if "providers" not in fields:
        return []
    extras = [_provider(each, file) for each in _list(fields["providers"], "providers")]
    for each in extras:
        if not each.inventories and not each.traits:
            log.warning("nothing is added to a provider that is configured", provider=each.shown, file=file)
    return [each for each in extras if each.inventories or each.traits]


def _check_version(meta: Place) -> None:
    place = _required(meta, _mapping(meta, "meta"), "schema_version")
    match = _VERSION.fullmatch(place.value) if isinstance(place.value, str) else None
    if match is None:
        place.wrong(f"schema_version is {place.shown}; it has to be a text like '1.{MINOR}'")
    if int(match[1]) != 1:
        place.wrong(f"schema_version is {place.shown}, and only 1.x is understood")
    if int(match[2]) > MINOR:
        log.warning("a provider configuration is of a newer schema", version=place.value, known=f"1.{MINOR}")


def _provider(place: Place, file: str) -> ProviderExtra:
    fields = _mapping(place, "a provider")
    if _SOURCE in fields:
        fields[_SOURCE].wrong(f"the key {_SOURCE} is reserved")
    identification = _identification(_required(place, fields, "identification"))
    inventories, traits = _additional(fields, "inventories"), _additional(fields, "traits")
    classes = [pair for each in inventories for pair in _mapping(each, "an inventory").items()]
    names = [(_trait(each), each) for each in traits]
    _check_custom([*classes, *names])
    return ProviderExtra(
        **identification,
        inventories=_inventories(classes),
        traits=tuple(sorted({name for name, _ in names})),
        source=file,
    )


def _identification(place: Place) -> dict[str, str]:
    fields = _mapping(place, "identification")
    for key, value in fields.items():
        if key not in ("uuid", "name"):
            value.wrong(f"identification has uuid or name, not '{key}'")
    if len(fields) != 1:
        place.wrong("identification has to have one of uuid and name")
    ((key, value),) = fields.items()
    text = value.value
    if not isinstance(text, str):
        value.wrong(f"{key} is {value.shown}; it has to be a text")
    if key == "name":
        if not 1 <= len(text) <= _LONGEST_NAME:
            value.wrong(f"name has to have 1 to {_LONGEST_NAME} characters, not {len(text)}")
        return {"name": text}
    if text != COMPUTE_NODE and not _UUID.fullmatch(text):
        value.wrong(f"{value.shown} is neither a uuid nor {COMPUTE_NODE}")
    return {"uuid": text if text == COMPUTE_NODE else text.lower()}


def _additional(fields: Mapping[str, Place], name: str) -> list[Place]:
    if name not in fields:
        return []
    inside = _mapping(fields[name], name)
    return _list(inside["additional"], f"{name}.additional") if "additional" in inside else []


def _trait(place: Place) -> str:
    if not isinstance(place.value, str):
        place.wrong(f"{place.shown} is no trait: traits are texts")
    return place.value


def _check_custom(names: list[tuple[str, Place]]) -> None:
    """Resource classes and traits; those that Nova and others own are not for operators."""
    for name, place in names:
        if not _NAME.fullmatch(name):
            place.wrong(f"'{name[:300]}' is no name: those have A-Z, 0-9 and _, and 1 to 255 characters")
    foreign = {name: place for name, place in reversed(names) if not name.startswith("CUSTOM_")}
    if foreign:
        first = next(place for name, place in names if name in foreign)
        first.wrong(f"only what begins with CUSTOM_ can be added, not {', '.join(sorted(foreign))}")


def _inventories(classes: list[tuple[str, Place]]) -> dict[str, dict[str, int | float]]:
    found: dict[str, dict[str, int | float]] = {}
    for name, place in classes:
        if name in found:
            place.wrong(f"the inventory of {name} is given twice")
        found[name] = dict(_inventory(name, place))
    return found


def _inventory(name: str, place: Place) -> Iterator[tuple[str, int | float]]:
    fields = _mapping(place, f"the inventory of {name}")
    _required(place, fields, "total")
    for key, value in fields.items():
        if key == "allocation_ratio":
            yield key, _ratio(value)
        elif key in _LEAST:
            yield key, _amount(key, value)
        else:
            value.wrong(f"an inventory has no '{key}', only {', '.join([*_LEAST, 'allocation_ratio'])}")
    total, reserved = fields["total"].value, fields["reserved"].value if "reserved" in fields else 0
    if isinstance(total, int) and isinstance(reserved, int) and reserved > total:
        fields["reserved"].wrong(f"{reserved} of {name} are reserved, and there are {total}")


def _amount(key: str, place: Place) -> int:
    value = place.value
    if not isinstance(value, int) or isinstance(value, bool):
        place.wrong(f"{key} is {place.shown}; it has to be a whole number")
    if not _LEAST[key] <= value <= _MOST:
        place.wrong(f"{key} is {place.shown}; it has to be {_LEAST[key]} to {_MOST}")
    return value


def _ratio(place: Place) -> float:
    value = place.value
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        place.wrong(f"allocation_ratio is {place.shown}; it has to be a number")
    if not math.isfinite(value) or not 0 < value <= _LARGEST_RATIO:
        place.wrong(f"allocation_ratio is {place.shown}; it has to be above 0 and finite")
    return float(value)


def _mapping(place: Place, what: str) -> dict[str, Place]:
    if place.fields is None:
        place.wrong(f"{what} has to be a mapping, not {place.shown}")
    return place.fields


def _list(place: Place, what: str) -> list[Place]:
    if place.items is None:
        place.wrong(f"{what} has to be a list, not {place.shown}")
    return place.items


def _required(place: Place, fields: Mapping[str, Place], key: str) -> Place:
    if key not in fields:
        place.wrong(f"'{key}' is missing")
    return fields[key]
