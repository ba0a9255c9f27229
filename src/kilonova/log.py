"""Structured lines: one JSON object a line, into a file or to standard error.  Tokens and passwords are
never passed to a logger; keys that look like one are blanked all the same.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

_SECRET = ("token", "password", "passwd", "secret", "adminpass", "authorization")


def _blank_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for key in event:
        if any(word in key.lower() for word in _SECRET):
            event[key] = "***"
    return event


class LogFile(io.TextIOBase):
    """A file that takes whole lines, and does not hurt who logs when its disk is full.

    Lines that it could not take are counted; their number is the first line when there is room again.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError when the file cannot be opened."""
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._lost = 0
        self._why = ""
        self._torn = False  # a line is there in part

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._handle

    def write(self, text: str) -> int:
        try:
            if self._lost:
                self._put(f'{{"level": "warning", "event": "{self._lost} lines were lost: {self._why}"}}\n')
            self._put(text)
        except OSError as error:
            self._lost += 1
            self._why = error.strerror or str(error)
            if self._lost == 1:
                print(f"kilonova: cannot log: {error.strerror}: {text}", file=sys.stderr, end="")
        else:
            self._lost = 0
        return len(text)

    def _put(self, text: str) -> None:
        data = ("\n" + text if self._torn else text).encode()
        self._torn = os.write(self._handle, data) != len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


def configure(path: Path | None, *, debug: bool = False) -> None:
    """Send log lines to ``path``, or to standard error.  Raises OSError when it cannot be opened."""
    level = logging.DEBUG if debug else logging.INFO
    stream = sys.stderr if path is None else cast(TextIO, LogFile(path))
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
