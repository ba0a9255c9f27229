"""All tables, one file an aggregate.  Columns are of kinds that every dialect stores alike:

text, whole numbers (moments are microseconds since 1970), floats, booleans, and records as JSON text.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, MetaData, Text

metadata = MetaData()


def text(name: str, **options: Any) -> Column[str]:
    """A text column that must have a value, unless ``nullable=True`` is given."""
    return Column(name, Text, **{"nullable": False, **options})


def number(name: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, **{"nullable": False, **options})


def real(name: str, **options: Any) -> Column[float]:
    return Column(name, Float(53), **{"nullable": False, **options})


def flag(name: str, **options: Any) -> Column[bool]:
    return Column(name, Boolean, **{"nullable": False, **options})


def json_text(name: str, **options: Any) -> Column[str]:
    """A record, encoded by msgspec."""
    return Column(name, Text, **{"nullable": False, **options})


def serial(name: str = "id") -> Column[int]:
    """A number that the database counts up."""
    return Column(name, BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)


def load_all() -> MetaData:
    """The metadata with every table in it."""
    from kilonova.db.tables import (  # noqa: F401
        cells,
        compute,
        host_resources,
        identity,
        image,
        journal,
        network,
        placement,
        scheduling,
        volume,
    )

    return metadata
