"""Structured lines: one JSON object a line, into a file or to standard error.  Tokens and passwords are
never passed to a logger; keys that look like one are blanked all the same.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

_SECRET = ("token", "password", "passwd", "secret", "adminpass", "authorization")


def _blank_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for key in event:
        if any(word in key.lower() for word in _SECRET):
            event[key] = "***"
    return event


def configure(path: Path | None, *, debug: bool = False) -> TextIO:
    """Send log lines to ``path``, or to standard error; returns what they are written to."""
    level = logging.DEBUG if debug else logging.INFO
    stream: TextIO = sys.stderr if path is None else path.open("a", buffering=1, encoding="utf-8")
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _blank_secrets,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    # Libraries (uvicorn, os-vif, oslo) speak by the standard library.
    logging.basicConfig(
        stream=stream,
        level=logging.WARNING,
        format='{"level": "%(levelname)s", "logger": "%(name)s", "event": "%(message)s"}',
        force=True,
    )
    return stream
