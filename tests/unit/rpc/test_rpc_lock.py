"""What controllers and agents say to each other only grows."""

from __future__ import annotations

from typing import Protocol

import msgspec
import pytest

from kilonova.rpc import versions
from kilonova.rpc.messages import Observed
from tools import rpc_lock

LOCKED = rpc_lock.parse(rpc_lock.LOCK.read_text())


@pytest.mark.capability("RPC-4")
def test_what_was_released_is_as_it_was_and_what_is_new_is_locked() -> None:
    now = rpc_lock.described()
    assert rpc_lock.broken(LOCKED, now) == []
    assert rpc_lock.missing(LOCKED, now) == []
    assert rpc_lock.unguarded(LOCKED) == []
    assert "GuestSpec.uuid" in now and "host.shut_down().timeout" in now and "HostCell.distances" in now


def test_the_file_is_what_it_says() -> None:
    assert rpc_lock.render(LOCKED) == rpc_lock.LOCK.read_text()


def test_everything_newer_than_the_oldest_agent_is_in_the_lock_with_its_version() -> None:
    for what, version in versions.SINCE.items():
        names = [what] if "." in what else [f"host.{what}", f"move.{what}"]
        assert [LOCKED[name][0] for name in names if name in LOCKED] == [version]


class Old(msgspec.Struct, frozen=True):
    name: str
    number: int = 0


class Speaker(Protocol):
    async def say(self, word: Old) -> Observed: ...


def changed(field: str, kind: object, default: object = msgspec.NODEFAULT) -> type:
    """The same record with one more or other field."""
    fields: dict[str, tuple[object, ...]] = {"name": ("name", str), "number": ("number", int, 0)}
    fields[field] = (field, kind) if default is msgspec.NODEFAULT else (field, kind, default)
    return msgspec.defstruct("Old", list(fields.values()), kw_only=True)  # type: ignore[arg-type]


def judged(record: type) -> list[str]:
    """What is said against a change of the record."""
    before = {what: ("1.0", rest) for what, rest in rpc_lock.described({}, (Old,)).items()}
    return rpc_lock.broken(before, rpc_lock.described({}, (record,)))


def test_additions_with_a_default_are_fine_and_nothing_else_is() -> None:
    assert judged(Old) == []
    assert judged(changed("more", str, "")) == []
    assert judged(changed("more", str)) == ["Old.more is new and has no default: older peers do not send it"]
    (other_type,) = judged(changed("number", str, ""))
    assert other_type.startswith("Old.number was released as 'int = 0' and is 'str")
    assert judged(changed("number", int, 1)) == ["Old.number was released as 'int = 0' and is 'int = 1'"]
    assert judged(msgspec.defstruct("Old", [("name", str)])) == ["Old.number was released and is gone"]
    strict = msgspec.defstruct("Old", [("name", str), ("number", int, 0)], forbid_unknown_fields=True)
    assert judged(strict) == ["Old was released as 'map' and is 'map, strict'"]


def test_verbs_their_parameters_and_results_are_described() -> None:
    found = rpc_lock.described({"host": Speaker}, ())
    assert found["host.say"] == "gives Observed"
    assert found["host.say().word"] == "Old"
    assert found["Old.number"] == "int = 0" and found["Observed.uuid"] == "str"
    without = rpc_lock.described({}, ())
    locked = {what: ("1.0", rest) for what, rest in found.items()}
    assert "host.say was released and is gone" in rpc_lock.broken(locked, without)


def test_a_verb_that_old_agents_do_not_have_must_be_guarded() -> None:
    locked = {"host.fly": ("1.1", "gives None"), "host.say": ("1.0", "gives None")}
    assert rpc_lock.unguarded(locked) == [
        "host.fly came with 1.1: kilonova.rpc.versions.SINCE does not say so"
    ]
