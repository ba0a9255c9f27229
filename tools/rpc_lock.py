#!/usr/bin/env python3
"""rpc_lock.py [--write] - hold what controllers and agents say to each other against rpc.lock.

rpc.lock has a line for every verb, every field and every value of an enumeration that ever travelled, each
with the version of messages that brought it.  What is in it keeps its name, its type and its default; what is
new has a default, and gets its line, with the version of kilonova.rpc.versions, by --write.
"""

from __future__ import annotations

import enum
import inspect
import sys
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

from kilonova.rpc import versions, wire
from kilonova.rpc.desk import Alive, Desk, Echo
from kilonova.rpc.host import HostAgent
from kilonova.rpc.mover import Mover

LOCK = Path(__file__).resolve().parent.parent / "rpc.lock"
HEAD = """\
# What controllers and agents say to each other: version of messages, verb or field, type and default.
# tools/rpc_lock.py --write adds lines; the others stay: what a release has said, the next one understands.
"""
PROTOCOLS = {"host": HostAgent, "move": Mover, "desk": Desk}
ALSO = (Alive, Echo, wire.Working, wire.Result, wire.Fault)
NAMES: dict[Any, str] = {wire.Fault: "answer.Fault"}  # of two records of one name

Lines = dict[str, str]
"""Verb, ``Record`` or ``Record.field`` -> what it is."""


def described(protocols: dict[str, type] = PROTOCOLS, also: tuple[type, ...] = ALSO) -> Lines:
    """All that travels."""
    found: Lines = {}
    for name, protocol in protocols.items():
        for verb in wire.verbs_of(protocol).values():
            _add_record(found, verb.params, f"{name}.{verb.name}()")
            found[f"{name}.{verb.name}"] = f"gives {_text(found, verb.result)}"
    for record in also:
        _text(found, record)
    return found


def _text(found: Lines, kind: Any) -> str:
    """A type in words; the records in it are described as well."""
    if kind is None or kind is type(None):
        return "None"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_text(found, each) for each in arguments)
    if origin is typing.Literal:
        return f"Literal[{', '.join(repr(each) for each in arguments)}]"
    if origin is not None:
        inner = ("..." if each is Ellipsis else _text(found, each) for each in arguments)
        return f"{origin.__name__}[{', '.join(inner)}]"
    name = NAMES.get(kind, getattr(kind, "__name__", str(kind)))
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and name not in found:
        _add_record(found, kind, name)
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        for each in kind:
            found[f"{kind.__name__}.{each.name}"] = f"= {each.value!r}"
    return str(name)


def _add_record(found: Lines, record: Any, name: str) -> None:
    config = record.__struct_config__
    shape = "array" if config.array_like else "map"
    strict = ", strict" if config.forbid_unknown_fields else ""
    tag = "" if config.tag is None else f", {config.tag_field} = {config.tag!r}"
    found[name] = f"{shape}{strict}{tag}"
    hints = typing.get_type_hints(record)
    for each in msgspec.structs.fields(record):
        default = "" if each.required else f" = {_default(each)!r}"
        known_as = "" if each.encode_name == each.name else f" as {each.encode_name}"
        found[f"{name}.{each.name}"] = f"{_text(found, hints[each.name])}{default}{known_as}"


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    assert not isinstance(field.default_factory, msgspec._core.UnsetType)
    return field.default_factory()


def parse(text: str) -> dict[str, tuple[str, str]]:
    """What -> (version, what it is)."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            version, what, rest = line.split(" ", 2)
            found[what.removesuffix(":")] = (version, rest)
    return found


def render(locked: dict[str, tuple[str, str]]) -> str:
    lines = (f"{version} {what}: {rest}\n" for what, (version, rest) in sorted(locked.items()))
    return HEAD + "".join(lines)


def broken(locked: dict[str, tuple[str, str]], now: Lines) -> list[str]:
    """What a peer of an earlier release would not understand, or not be understood in."""
    found = []
    for what, (_, rest) in locked.items():
        if what not in now:
            found.append(f"{what} was released and is gone")
        elif now[what] != rest:
            found.append(f"{what} was released as '{rest}' and is '{now[what]}'")
    for what in sorted(set(now) - set(locked)):
        owner = what.rpartition(".")[0]
        if owner in locked and _is_bare_field(what, now):
            found.append(f"{what} is new and has no default: older peers do not send it")
    return found


def _is_bare_field(what: str, now: Lines) -> bool:
    return " = " not in f" {now[what]}" and not now[what].startswith(("gives ", "map", "array"))


def missing(locked: dict[str, tuple[str, str]], now: Lines) -> list[str]:
    return sorted(set(now) - set(locked))


def unguarded(locked: dict[str, tuple[str, str]]) -> list[str]:
    """Verbs that are newer than the oldest agent that is served, and are not said to be."""
    oldest = versions.parsed(versions.OLDEST)
    return [
        f"{what} came with {version}: kilonova.rpc.versions.SINCE does not say so"
        for what, (version, rest) in locked.items()
        if what.startswith(("host.", "move.")) and rest.startswith("gives ")
        if versions.parsed(version) > oldest and versions.SINCE.get(what.partition(".")[2]) != version
    ]


def main() -> int:
    locked = parse(LOCK.read_text()) if LOCK.exists() else {}
    now = described()
    wrong = broken(locked, now)
    if not wrong and sys.argv[1:] == ["--write"]:
        for what in missing(locked, now):
            locked[what] = (versions.SINCE.get(what, versions.VERSION), now[what])
        LOCK.write_text(render(locked))
    wrong += [f"{what} is not in rpc.lock: tools/rpc_lock.py --write" for what in missing(locked, now)]
    wrong += unguarded(locked)
    print("\n".join(wrong) or "what is said is what was said")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
