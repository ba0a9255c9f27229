"""Holds the journal at a step of an operation, from outside, where its event and the cursor are committed.

A trigger on the table of operations waits for a lock that a test has.  So the step before has done its work,
what it did is not committed yet, and the next one has not begun.  Before the first step it is the commit of
the request.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import psycopg

NUMBER = 20261129  # of the lock
PATIENCE = 60.0  # seconds

INSTALL = f"""
CREATE TABLE IF NOT EXISTS test_gates (operation text, step integer);
CREATE OR REPLACE FUNCTION test_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM test_gates g WHERE g.operation = NEW.operation AND g.step <= NEW.cursor
               AND (TG_OP = 'INSERT' OR OLD.cursor < g.step)) THEN
        PERFORM pg_advisory_xact_lock_shared({NUMBER});
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER test_gate AFTER INSERT OR UPDATE ON actions
    FOR EACH ROW EXECUTE FUNCTION test_gate();
"""
WAITING = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"


class Asked:
    """A request whose answer may be held up, or never come."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(ask,), daemon=True)
        self._thread.start()

    def _run(self, ask: Callable[[], object]) -> None:
        try:
            ask()
        except Exception as error:  # noqa: BLE001 - it is looked at by who asked
            self.error = error

    def answered(self, timeout: float = 60.0) -> None:
        """Raises TimeoutError."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError("the request is not answered")


class Gate:
    """``shut`` before the operation is asked for, ``wait`` until it has come there, ``open``."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._holder: psycopg.Connection[tuple[int]] | None = None

    def shut(self, operation: str, step: int) -> None:
        self._holder = psycopg.connect(self._conninfo, autocommit=True)
        self._holder.execute(INSTALL)
        self._holder.execute("DELETE FROM test_gates")
        self._holder.execute("INSERT INTO test_gates VALUES (%s, %s)", (operation, step))
        self._holder.execute("SELECT pg_advisory_lock(%s)", (NUMBER,))

    def wait(self, asked: Asked) -> None:
        """Raises TimeoutError, or what the request was refused by."""
        assert self._holder is not None, "it is not shut"
        deadline = time.monotonic() + PATIENCE
        while not list(self._holder.execute(WAITING, (NUMBER,))):
            if asked.error is not None:
                raise asked.error
            if time.monotonic() > deadline:
                raise TimeoutError("the operation does not come to this step")
            time.sleep(0.002)

    def open(self) -> None:
        """Also when the database has died with it."""
        if self._holder is not None:
            with contextlib.suppress(psycopg.OperationalError):  # then nobody holds the lock any more
                self._holder.execute("DELETE FROM test_gates")
            self._holder.close()
            self._holder = None
