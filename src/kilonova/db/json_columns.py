"""Questions to columns that have JSON, stored as text, on each database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class JsonHolds(FunctionElement[bool]):
    """Whether a JSON list of texts, stored as text, holds a text."""

    type = Boolean()
    inherit_cache = True


@compiles(JsonHolds, "sqlite")
def _holds_on_sqlite(element: JsonHolds, compiler: Any, **kw: Any) -> str:
    column, value = (compiler.process(each, **kw) for each in element.clauses)
    return f"EXISTS (SELECT 1 FROM json_each({column}) WHERE json_each.value = {value})"  # noqa: S608 - compiled parts


@compiles(JsonHolds, "postgresql")
def _holds_on_postgresql(element: JsonHolds, compiler: Any, **kw: Any) -> str:
    column, value = (compiler.process(each, **kw) for each in element.clauses)
    return f"jsonb_exists(({column})::jsonb, ({value})::text)"


class JsonMaps(FunctionElement[bool]):
    """Whether a JSON object of texts, stored as text, maps a name to a value."""

    type = Boolean()
    inherit_cache = True


@compiles(JsonMaps, "sqlite")
def _maps_on_sqlite(element: JsonMaps, compiler: Any, **kw: Any) -> str:
    column, name, value = (compiler.process(each, **kw) for each in element.clauses)
    rows = f"SELECT 1 FROM json_each({column})"  # noqa: S608 - compiled parts
    return f"EXISTS ({rows} WHERE json_each.key = {name} AND json_each.value = {value})"


@compiles(JsonMaps, "postgresql")
def _maps_on_postgresql(element: JsonMaps, compiler: Any, **kw: Any) -> str:
    column, name, value = (compiler.process(each, **kw) for each in element.clauses)
    return f"coalesce((({column})::jsonb ->> ({name})::text) = ({value})::text, false)"


class JsonPart(FunctionElement[str]):
    """A text in a JSON object that is stored as text."""

    type = Text()
    inherit_cache = True


@compiles(JsonPart, "sqlite")
def _part_on_sqlite(element: JsonPart, compiler: Any, **kw: Any) -> str:
    column, name = (compiler.process(each, **kw) for each in element.clauses)
    return f"json_extract({column}, '$.' || {name})"


@compiles(JsonPart, "postgresql")
def _part_on_postgresql(element: JsonPart, compiler: Any, **kw: Any) -> str:
    column, name = (compiler.process(each, **kw) for each in element.clauses)
    return f"(({column})::json ->> ({name})::text)"
