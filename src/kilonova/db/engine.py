"""Transactions as plain functions.

``await db.write(fn)`` runs ``fn(tx)`` in a database thread inside one transaction.  ``fn`` cannot await,
so no transaction ever spans a call to a peer; it may run again after a conflict, so it touches nothing
but the database.

SQLAlchemy Core describes the tables and compiles the statements, once each; they run on the driver's own
connection.  That is where a tenth of the cost of going through an SQLAlchemy connection comes from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy import Dialect, Executable, Table, bindparam, insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import BigInteger

from kilonova.errors import DatabaseUnavailable as DatabaseUnavailable

T = TypeVar("T")
Row = tuple[Any, ...]


class UniqueViolation(Exception):
    """An insert or update met a row that must be the only one of its key."""


class db_now(FunctionElement[int]):  # noqa: N801 - named like an SQL function
    """The database's clock in microseconds since 1970.

    Leases of several controllers are compared with one clock, the database's.
    """

    type = BigInteger()
    inherit_cache = True


@compiles(db_now)
def _render_db_now(element: db_now, compiler: Any, **kw: Any) -> str:
    return "kilonova_now()"


class Statement:
    """An SQL statement compiled once per compiler of a dialect; its values are bound at each call."""

    __slots__ = ("_compiled", "clause")

    def __init__(self, clause: Executable) -> None:
        self.clause = clause
        self._compiled: dict[type, tuple[str, dict[str, Any]]] = {}

    def text(self, dialect: Dialect) -> tuple[str, dict[str, Any]]:
        """The text and the values that the statement itself carries."""
        found = self._compiled.get(dialect.statement_compiler)
        if found is None:
            found = self._compiled[dialect.statement_compiler] = compile_clause(self.clause, dialect)
        return found


def compile_clause(clause: Executable, dialect: Dialect) -> tuple[str, dict[str, Any]]:
    """The text of a clause and the values bound in it."""
    assert isinstance(clause, ClauseElement)
    compiled = clause.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    return str(compiled), dict(compiled.params or {})  # DDL has no params


def insert_into(table: Table, *, returning: str | None = None) -> Statement:
    """An insert that binds every column by its name, but for a ``serial`` one, which the database counts.

    Python-side column defaults do not exist here: every value is given at the call.
    """
    columns = [column for column in table.columns if column.autoincrement is not True]
    clause = insert(table).values({column.name: bindparam(column.name) for column in columns})
    return Statement(clause.returning(table.c[returning]) if returning else clause)


class Cursor(Protocol):
    @property
    def rowcount(self) -> int: ...
    def execute(self, text: str, values: dict[str, Any], /) -> Any: ...
    def executemany(self, text: str, values: list[dict[str, Any]], /) -> Any: ...
    def fetchall(self) -> list[Row]: ...
    def fetchone(self) -> Any: ...


class Tx:
    """One open transaction.  Values are always bound, never written into the text."""

    __slots__ = ("_cursor", "_dialect", "after_commit")

    def __init__(self, cursor: Cursor, dialect: Dialect) -> None:
        self._cursor = cursor
        self._dialect = dialect
        self.after_commit: list[Callable[[], None]] = []

    def _execute(self, statement: Statement | Executable, values: dict[str, Any]) -> None:
        if isinstance(statement, Statement):
            text, own = statement.text(self._dialect)
        else:
            text, own = compile_clause(statement, self._dialect)
        self._cursor.execute(text, {**own, **values} if own else values)

    def all(self, statement: Statement | Executable, **values: Any) -> list[Row]:
        self._execute(statement, values)
        return self._cursor.fetchall()

    def one(self, statement: Statement | Executable, **values: Any) -> Row | None:
        """The first row, or None."""
        self._execute(statement, values)
        row: Row | None = self._cursor.fetchone()
        return row

    def scalar(self, statement: Statement | Executable, **values: Any) -> Any:
        """The first column of the first row, or None."""
        row = self.one(statement, **values)
        return None if row is None else row[0]

    def run(self, statement: Statement | Executable, **values: Any) -> int:
        """The number of rows that the statement changed."""
        self._execute(statement, values)
        return self._cursor.rowcount

    def run_many(self, statement: Statement, values: Sequence[dict[str, Any]]) -> None:
        """One statement for many rows of values."""
        if values:
            text, own = statement.text(self._dialect)
            self._cursor.executemany(text, [{**own, **each} for each in values])

    def call_after_commit(self, call: Callable[[], None]) -> None:
        """Have ``call`` made in the event loop when, and only when, this transaction is committed."""
        self.after_commit.append(call)


def call_all(loop: asyncio.AbstractEventLoop, calls: list[Callable[[], None]]) -> None:
    """Make the calls that wait for a commit.

    One that fails keeps neither the others nor those who wait for the commit from hearing of it: it is
    reported to the loop.
    """
    for call in calls:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - see above
            context = {"message": "a call after a commit failed", "exception": error}
            loop.call_exception_handler(context)


class Database(Protocol):
    """What runs transactions.  ``name`` is the dialect's: ``sqlite`` or ``postgresql``."""

    name: str

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run ``fn`` in a transaction of its own and commit it.

        Raises what ``fn`` raises (nothing is kept then), UniqueViolation, or DatabaseUnavailable.  A caller
        that is cancelled gets its CancelledError when the transaction is over, so that what its clean-up
        writes comes after it.
        """

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Run ``fn`` on a snapshot that it cannot change."""

    async def close(self) -> None: ...
