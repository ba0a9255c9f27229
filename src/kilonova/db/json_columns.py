"""Questions to columns that have JSON, stored as text, on each database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class json_holds(FunctionElement[bool]):  # noqa: N801 - named like an SQL function
    """Whether a JSON list of texts, stored as text, holds a text."""

    type = Boolean()
    inherit_cache = True


@compiles(json_holds, "sqlite")
def _holds_on_sqlite(element: json_holds, compiler: Any, **kw: Any) -> str:
    column, value = (compiler.process(each, **kw) for each in element.clauses)
    return f"EXISTS (SELECT 1 FROM json_each({column}) WHERE json_each.value = {value})"  # noqa: S608 - compiled parts


@compiles(json_holds, "postgresql")
def _holds_on_postgresql(element: json_holds, compiler: Any, **kw: Any) -> str:
    column, value = (compiler.process(each, **kw) for each in element.clauses)
    return f"jsonb_exists(({column})::jsonb, ({value})::text)"


class json_maps(FunctionElement[bool]):  # noqa: N801
    """Whether a JSON object of texts, stored as text, maps a name to a value."""

    type = Boolean()
    inherit_cache = True


@compiles(json_maps, "sqlite")
def _maps_on_sqlite(element: json_maps, compiler: Any, **kw: Any) -> str:
    column, name, value = (compiler.process(each, **kw) for each in element.clauses)
    rows = f"SELECT 1 FROM json_each({column})"  # noqa: S608 - compiled parts
    return f"EXISTS ({rows} WHERE json_each.key = {name} AND json_each.value = {value})"


@compiles(json_maps, "postgresql")
def _maps_on_postgresql(element: json_maps, compiler: Any, **kw: Any) -> str:
    column, name, value = (compiler.process(each, **kw) for each in element.clauses)
    return f"coalesce((({column})::jsonb ->> ({name})::text) = ({value})::text, false)"


class json_part(FunctionElement[str]):  # noqa: N801 - named like an SQL function
    """A text in a JSON object that is stored as text."""

    type = Text()
    inherit_cache = True


@compiles(json_part, "sqlite")
def _part_on_sqlite(element: json_part, compiler: Any, **kw: Any) -> str:
    column, name = (compiler.process(each, **kw) for each in element.clauses)
    return f"json_extract({column}, '$.' || {name})"


@compiles(json_part, "postgresql")
def _part_on_postgresql(element: json_part, compiler: Any, **kw: Any) -> str:
    column, name = (compiler.process(each, **kw) for each in element.clauses)
    return f"(({column})::json ->> ({name})::text)"
