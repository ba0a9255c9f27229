"""How a verb travels: its Protocol is the declaration, the parameters become a record, and errors their name.

What a side does not know of a record (a newer one's field) it ignores; what is missing has a default.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any

import msgspec

from kilonova import errors


class Verb(msgspec.Struct, frozen=True):
    """``params`` is a record with the parameters of the verb, ``result`` the type of what it gives."""

    name: str
    params: Any
    result: Any

    def encode(self, arguments: dict[str, Any]) -> bytes:
        return _encode(self.params(**arguments))

    def decode(self, data: bytes) -> Any:
        """Raises Invalid for what is not this verb's."""
        try:
            return msgspec.msgpack.decode(data, type=self.params)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise errors.Invalid(f"The message is no '{self.name}': {error}") from error


def verbs_of(protocol: type) -> dict[str, Verb]:
    """The verbs that a Protocol declares, by name."""
    found = {}
    for name, method in vars(protocol).items():
        if not name.startswith("_") and inspect.iscoroutinefunction(method):
            found[name] = _verb(name, method)
    return found


def _verb(name: str, method: Any) -> Verb:
    hints = typing.get_type_hints(method)
    fields: list[Any] = []
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        field = (parameter.name, hints[parameter.name])
        bare = parameter.default is inspect.Parameter.empty
        fields.append(field if bare else (*field, parameter.default))
    result = hints.get("return", type(None))
    return Verb(name, msgspec.defstruct(name, fields, kw_only=True), result)


class Working(msgspec.Struct, frozen=True, tag="working"):
    """It is being done; the answer will come."""


class Result(msgspec.Struct, frozen=True, tag="result"):
    value: msgspec.Raw


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """``kind`` is a class of `kilonova.errors`."""

    kind: str
    message: str


Answer = Working | Result | Fault

_encode = msgspec.msgpack.Encoder().encode
_answers = msgspec.msgpack.Decoder(Answer)

WORKING = _encode(Working())


def result(value: Any) -> bytes:
    return _encode(Result(msgspec.Raw(_encode(value))))


def fault(error: errors.KilonovaError) -> bytes:
    return _encode(Fault(type(error).__name__, str(error)))


def answer(data: bytes) -> Answer:
    """Raises Invalid."""
    try:
        found: Answer = _answers.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise errors.Invalid(f"The answer cannot be read: {error}") from error
    return found


def value_of(verb: Verb, found: Result | Fault) -> Any:
    """What the verb gave.  Raises what it raised, or Invalid for what is not its result."""
    if isinstance(found, Fault):
        raise raised(found)
    try:
        return msgspec.msgpack.decode(found.value, type=verb.result)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise errors.Invalid(f"That is no result of '{verb.name}': {error}") from error


def raised(found: Fault) -> errors.KilonovaError:
    """The error that the other side had; one of a kind that we do not know is a fault of that host."""
    kind = getattr(errors, found.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.KilonovaError):
        return kind(found.message)
    return errors.HostFault(f"{found.kind}: {found.message}")
