from __future__ import annotations

import inspect
import typing
from typing import Any, Protocol

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilonova import errors
from kilonova.rpc import wire
from kilonova.rpc.desk import Desk
from kilonova.rpc.host import HostAgent
from kilonova.rpc.messages import Observed

HOST, DESK = wire.verbs_of(HostAgent), wire.verbs_of(Desk)
VERBS = [*HOST.values(), *DESK.values()]
KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.KilonovaError)
]

# What msgpack carries: texts that are UTF-8, and whole numbers of 64 bits.
st.register_type_strategy(str, st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(
    object, st.none() | st.booleans() | st.text(st.characters(codec="ascii"), max_size=5)
)


def records(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type as its annotations say, records field by field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: records(hints[name]) for name in kind.__struct_fields__})
    if origin is tuple and arguments[1:] == (...,):
        return st.lists(records(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*(records(each) for each in arguments))
    if origin is dict:
        return st.dictionaries(records(arguments[0]), records(arguments[1]), max_size=2)
    if origin is not None and type(None) in arguments:
        return st.one_of(*(records(each) for each in arguments))
    return st.none() if kind is type(None) else st.from_type(kind)


@pytest.mark.capability("RPC-1")
def test_every_verb_travels() -> None:
    assert len(HOST) == 19 and len(DESK) == 12
    for name, method in inspect.getmembers(HostAgent, inspect.iscoroutinefunction):
        assert tuple(inspect.signature(method).parameters)[1:] == HOST[name].params.__struct_fields__


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
@given(st.data())
@settings(max_examples=15)
def test_parameters_come_as_they_were_sent(verb: wire.Verb, data: st.DataObject) -> None:
    hints = typing.get_type_hints(verb.params)
    sent = {name: data.draw(records(hints[name])) for name in verb.params.__struct_fields__}
    found = verb.decode(verb.encode(sent))
    assert {name: getattr(found, name) for name in sent} == sent


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
@given(st.data())
@settings(max_examples=15)
def test_results_come_as_they_were_given(verb: wire.Verb, data: st.DataObject) -> None:
    given_ = data.draw(records(verb.result))
    answer = wire.answer(wire.result(given_))
    assert isinstance(answer, wire.Result)
    assert wire.value_of(verb, answer) == given_


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_come_as_they_were_raised(kind: type[errors.KilonovaError]) -> None:
    answer = wire.answer(wire.fault(kind("it did not go")))
    with pytest.raises(errors.KilonovaError, match="it did not go") as caught:
        wire.value_of(HOST["observe"], answer)  # type: ignore[arg-type]
    assert type(caught.value) is kind


@pytest.mark.parametrize("kind", ["Newer", "annotations", "Exception", "os", "__name__", ""])
def test_an_error_of_a_kind_that_we_do_not_know_is_a_fault_of_the_host(kind: str) -> None:
    found = wire.raised(wire.Fault(kind, "it did not go"))
    assert type(found) is errors.HostFault and "it did not go" in str(found)


@given(st.sampled_from(VERBS), st.binary(max_size=200))
def test_what_is_no_message_is_refused(verb: wire.Verb, data: bytes) -> None:
    for decode in (verb.decode, wire.answer, lambda raw: wire.value_of(verb, wire.Result(msgspec.Raw(raw)))):
        try:
            decode(data)
        except errors.Invalid:
            continue


@given(st.sampled_from(VERBS), st.data(), st.integers(0, 10_000), st.integers(0, 255))
def test_a_message_with_a_broken_byte_is_refused_or_read(
    verb: wire.Verb, data: st.DataObject, at: int, octet: int
) -> None:
    hints = typing.get_type_hints(verb.params)
    sent = verb.encode({name: data.draw(records(hints[name])) for name in verb.params.__struct_fields__})
    broken = bytearray(sent)
    broken[at % len(broken)] = octet
    try:
        verb.decode(bytes(broken))
    except errors.Invalid as error:
        assert f"no '{verb.name}'" in str(error)


def test_a_deep_message_is_refused() -> None:
    with pytest.raises(errors.Invalid):
        HOST["observe"].decode(b"\x81\xa4uuid" + b"\x91" * 100_000)
    with pytest.raises(errors.Invalid):
        HOST["observe"].decode(b"\x82\xa4uuid\xa1x\xa4more" + b"\x91" * 100_000)


class Older(Protocol):
    async def look(self, uuid: str) -> Observed: ...


class Newer(Protocol):
    async def look(self, uuid: str, *, closely: bool = False) -> Observed: ...


@pytest.mark.capability("RPC-4")
def test_both_sides_may_know_more_than_the_other() -> None:
    older, newer = wire.verbs_of(Older)["look"], wire.verbs_of(Newer)["look"]
    assert older.decode(newer.encode({"uuid": "u1", "closely": True})).uuid == "u1"
    found = newer.decode(older.encode({"uuid": "u1"}))
    assert (found.uuid, found.closely) == ("u1", False)


def test_what_is_missing_without_a_default_is_told() -> None:
    with pytest.raises(errors.Invalid, match=r"no 'look'.*missing required field `uuid`"):
        wire.verbs_of(Older)["look"].decode(msgspec.msgpack.encode({}))
    with pytest.raises(errors.Invalid, match="no result of 'look'"):
        wire.value_of(wire.verbs_of(Older)["look"], wire.Result(msgspec.Raw(b"\x01")))
