"""How often things have changed that no row tells of afterwards, such as rows that are gone."""

from __future__ import annotations

from sqlalchemy import select, text

from kilonova.db.engine import Statement, Tx
from kilonova.db.tables.scheduling import epochs

HOSTS, PROVIDERS, AGGREGATES = "hosts", "providers", "aggregates"
CELLS = "cells"  # servers that have come from one to another

ALL = Statement(select(epochs.c.subject, epochs.c.number))
BUMP = Statement(
    text(
        "INSERT INTO epochs (subject, number) VALUES (:subject, 1)"
        " ON CONFLICT (subject) DO UPDATE SET number = epochs.number + 1"
    )
)


def bump(tx: Tx, subject: str) -> None:
    """Something of that kind was removed, or is not as it was."""
    tx.run(BUMP, subject=subject)


def read(tx: Tx) -> dict[str, int]:
    """Subject -> number; one that is not there has never changed."""
    return {subject: number for subject, number in tx.all(ALL)}
