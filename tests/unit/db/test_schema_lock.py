"""Tables do not change under a revision that databases have."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kilonova.db.schema import REVISION, statements

LOCK = Path(__file__).parents[3] / "schema.lock"


def test_the_tables_are_those_of_their_revision() -> None:
    tables = "\n".join(str(each) for each in statements())
    line = f"{REVISION} {hashlib.sha256(tables.encode()).hexdigest()}"
    last = LOCK.read_text().splitlines()[-1]
    assert line == last, f"give db/schema.py another REVISION, and schema.lock the line '{line}' with it"
