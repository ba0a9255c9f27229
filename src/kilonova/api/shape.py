"""Shapes of requests, declared once.  Each field says in which microversions it exists:

    class CreateThing(Shape):
        name: Name
        key: Maybe[Name] = None                         # may be left out, and is never null
        description: Annotated[str | None, since(19)] = None
        host: Annotated[str | None, between(30, 67), Key("OS-EXT:host")] = None

``read(CreateThing, version, data)`` gives an object with all of these attributes, made by a strict msgspec
type for the band of microversions that ``version`` is in: an unknown field and a wrong type are refused
with the path of the field.  Fields that do not exist in that version have their default.
"""

from __future__ import annotations

import inspect
import types
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from kilonova.api.microversion import MAX, MIN
from kilonova.errors import Invalid

_NO_DEFAULT: Any = inspect.Parameter.empty
_SEPARATOR = "\x1f"  # between the name of a field and what is wrong with it, in our own ValueErrors


@dataclass(frozen=True, slots=True)
class Span:
    """The microversions in which a field exists.  A field may have several."""

    first: int = MIN
    last: int = MAX

    def __contains__(self, version: int) -> bool:
        return self.first <= version <= self.last


def since(first: int) -> Span:
    return Span(first=first)


def until(last: int) -> Span:
    return Span(last=last)


def between(first: int, last: int) -> Span:
    return Span(first, last)


@dataclass(frozen=True, slots=True)
class Required:
    """From this microversion on the field must be given."""

    first: int


@dataclass(frozen=True, slots=True)
class Key:
    """The name on the wire, where it is no Python name."""

    name: str


@dataclass(frozen=True, slots=True)
class Reads:
    """The wire has ``accepts``; ``read`` makes the attribute's value of it or raises ValueError."""

    accepts: Any
    read: Callable[[Any], Any]


class _NotNull:
    """Null is refused; the attribute is None only when the field was left out."""


T = TypeVar("T")
Maybe = Annotated[T | None, _NotNull()]

Reader = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    key: str
    type: Any  # on the wire
    default: Any
    spans: tuple[Span, ...]
    required_from: int | None
    read: Reader | None

    def exists(self, version: int) -> bool:
        return any(version in span for span in self.spans)

    def required(self, version: int) -> bool:
        if self.required_from is not None:
            return version >= self.required_from
        return self.default is _NO_DEFAULT


class Shape:
    """Base of the declarations.  ``open=True`` lets unknown fields pass unseen.

    ``of`` is for a body that has no fields of its own, such as a map of any keys: it is read as that type.
    """

    _open: ClassVar[bool] = False
    _of: ClassVar[Any] = None

    def __init_subclass__(cls, *, open: bool = False, of: Any = None) -> None:
        cls._open = open
        cls._of = of


S = TypeVar("S", bound=Shape)

_fields: dict[type[Shape], tuple[Field, ...]] = {}
_edges: dict[type[Shape], list[int]] = {}
_types: dict[tuple[type[Shape], int, bool], type[msgspec.Struct]] = {}


def fields(shape: type[Shape]) -> tuple[Field, ...]:
    """The declared fields of a shape, inherited ones first."""
    found = _fields.get(shape)
    if found is None:
        hints = get_type_hints(shape, include_extras=True)
        hints.pop("_open", None)
        hints.pop("_of", None)
        found = _fields[shape] = tuple(_field(shape, name, hint) for name, hint in hints.items())
    return found


def _field(shape: type[Shape], name: str, hint: Any) -> Field:
    spans: list[Span] = []
    key, required, nullable = name, None, True
    base, marks = hint, []
    if get_origin(hint) is Annotated:
        base, *marks = get_args(hint)
    others: list[Any] = []
    for mark in marks:
        match mark:
            case Span():
                spans.append(mark)
            case Key():
                key = mark.name
            case Required():
                required = mark.first
            case _NotNull():
                nullable = False
            case _:
                others.append(mark)
    if not nullable:
        base = Union[tuple(one for one in get_args(base) if one is not type(None))]  # noqa: UP007
    wire, read = _split(Annotated[(base, *others)] if others else base)
    default = getattr(shape, name, _NO_DEFAULT)
    return Field(name, key, wire, default, tuple(spans) or (Span(),), required, read)


def _split(kind: Any) -> tuple[Any, Reader | None]:
    """What the wire has, and what makes the attribute's value of it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        wire, read = _split(arguments[0])
        others = [mark for mark in arguments[1:] if not isinstance(mark, Reads)]
        for mark in arguments[1:]:
            if isinstance(mark, Reads):
                wire, read = mark.accepts, mark.read
        return (Annotated[(wire, *others)] if others else wire), read
    if origin in (Union, types.UnionType):
        members = [_split(one) for one in arguments]
        readers = [read for _, read in members if read is not None]
        if not readers:
            return kind, None
        if len([one for one in arguments if one not in (type(None), msgspec.UnsetType)]) > 1:
            raise TypeError(f"cannot tell which part of {kind} is to be read")
        return Union[tuple(wire for wire, _ in members)], _unless_null(readers[0])  # noqa: UP007
    if origin is list:
        wire, read = _split(arguments[0])
        return (list[wire], _each(read)) if read is not None else (kind, None)  # type: ignore[valid-type]
    return kind, None


def _unless_null(read: Reader) -> Reader:
    return lambda value: None if value is None else read(value)


def _each(read: Reader) -> Reader:
    return lambda values: [read(value) for value in values]


def edges(shape: type[Shape]) -> list[int]:
    """The microversions at which the shape changes, its parts' changes included."""
    found = _edges.get(shape)
    if found is None:
        points: set[int] = set()
        for field in fields(shape):
            for span in field.spans:
                points.update((span.first, span.last + 1))
            if field.required_from is not None:
                points.add(field.required_from)
            for part in _parts(field.type):
                points.update(edges(part))
        found = _edges[shape] = sorted(point for point in points if MIN < point <= MAX)
    return found


def _parts(kind: Any) -> Iterator[type[Shape]]:
    if isinstance(kind, type) and issubclass(kind, Shape):
        yield kind
    for argument in get_args(kind):
        yield from _parts(argument)


def type_at(shape: type[Shape], version: int, loose: bool = False) -> type[msgspec.Struct]:
    """The msgspec type of a shape in a microversion; one for each band.  ``loose``: unknown fields pass."""
    if shape._of is not None:
        return cast("type[msgspec.Struct]", shape._of)
    band = bisect_right(edges(shape), version)
    found = _types.get((shape, band, loose))
    if found is None:
        found = _types[shape, band, loose] = _make(shape, version, loose)
    return found


def _make(shape: type[Shape], version: int, loose: bool) -> type[msgspec.Struct]:
    members: list[Any] = []
    namespace: dict[str, Any] = {}
    readers: list[tuple[str, str, Reader]] = []
    for field in fields(shape):
        if not field.exists(version):
            namespace[field.name] = None if field.default is _NO_DEFAULT else field.default
            continue
        kind = _type_at(field.type, version, loose)
        if field.read is not None:
            readers.append((field.name, field.key, field.read))
        if field.required(version):
            members.append((field.name, kind))
        else:
            default = None if field.default is _NO_DEFAULT else field.default
            members.append((field.name, kind, default))
    if readers:
        namespace["__post_init__"] = _post_init(shape, readers)
    return msgspec.defstruct(
        f"{shape.__name__}At{version}",
        members,
        namespace=namespace,
        module=shape.__module__,
        rename={field.name: field.key for field in fields(shape)},
        forbid_unknown_fields=not (shape._open or loose),
        kw_only=True,
    )


def _post_init(shape: type[Shape], readers: list[tuple[str, str, Reader]]) -> Any:
    defaults = {field.name: field.default for field in fields(shape)}

    def __post_init__(self: Any) -> None:  # noqa: N807 - msgspec's name
        for name, key, read in readers:
            value = getattr(self, name)
            if value is not defaults[name]:
                try:
                    setattr(self, name, read(value))
                except ValueError as error:
                    raise ValueError(f"{key}{_SEPARATOR}{error}") from None

    return __post_init__


def _type_at(kind: Any, version: int, loose: bool) -> Any:
    if isinstance(kind, type) and issubclass(kind, Shape):
        return type_at(kind, version, loose)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is None or not any(True for _ in _parts(kind)):
        return kind
    if origin is Annotated:
        return Annotated[(_type_at(arguments[0], version, loose), *arguments[1:])]
    inner = tuple(_type_at(argument, version, loose) for argument in arguments)
    if origin in (Union, types.UnionType):
        return Union[inner]  # noqa: UP007 - made of values
    return origin[inner]


def read(shape: type[S], version: int, data: Any, loose: bool = False) -> S:
    """The request's data as a shape.  Raises Invalid, naming the field at fault."""
    try:
        return cast("S", msgspec.convert(data, type_at(shape, version, loose)))
    except msgspec.ValidationError as error:
        raise Invalid(explain(error)) from error


def explain(error: msgspec.ValidationError) -> str:
    """``Invalid input for field/attribute server.name: expected `str`, got `int`.``"""
    reason, _, path = str(error).partition(" - at `")
    path = path.rstrip("`").removeprefix("key` in `").removeprefix("$").lstrip(".")
    if _SEPARATOR in reason:
        field, _, reason = reason.partition(_SEPARATOR)
        path = f"{path}.{field}" if path else field
    reason = reason.rstrip(".")
    reason = reason[:1].lower() + reason[1:] if reason.startswith(("Expected", "Object")) else reason
    return f"Invalid input for field/attribute {path or 'body'}: {reason}."


def json_schema(shape: type[Shape], version: int) -> dict[str, Any]:
    """The shape in a microversion as JSON Schema, for the OpenAPI document."""
    return msgspec.json.schema(type_at(shape, version))
