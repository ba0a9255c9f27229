"""All operations by name: what a runner can run."""

from __future__ import annotations

from kilonova.journal.model import Operation
from kilonova.operations.create_steps import CREATE
from kilonova.operations.delete import DELETE
from kilonova.operations.reboot import REBOOT
from kilonova.operations.start import START
from kilonova.operations.stop import STOP

OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (CREATE, DELETE, REBOOT, START, STOP)
}
