"""Why a step failed, as it is stored with its operation."""

from __future__ import annotations

import random
import traceback

from kilonova.errors import KilonovaError
from kilonova.journal.model import Step, StoredError

CANCELLED = "Undone, because the server is being deleted."


class Cancelled(KilonovaError):
    """Somebody asked for this operation to be undone."""


class Undecided(KilonovaError):
    """A pivot has been begun, and nobody can tell yet whether it was passed: neither on nor back."""


def stored(error: Exception, step: Step, host: str | None) -> StoredError:
    """The error of a step that concerned ``host``.  Of a fault of ours users are told only the kind."""
    known = isinstance(error, KilonovaError)
    return StoredError(
        kind=type(error).__name__,
        message=str(error) if known else f"Unexpected fault in '{step.name}': {type(error).__name__}.",
        step=step.name,
        host=host,
        traceback="" if isinstance(error, Cancelled) else "".join(traceback.format_exception(error)),
        reasons=getattr(error, "reasons", {}),
        removed=getattr(error, "removed", {}),
        cancelled=isinstance(error, Cancelled),
    )


PAUSE = 0.2  # seconds before the first repeat of a step; doubled up to
LONGEST_PAUSE = 10.0


def pause(attempt: int) -> float:
    """Back-off with jitter, in seconds."""
    longest: float = min(PAUSE * 2**attempt, LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)
