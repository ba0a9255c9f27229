from __future__ import annotations

import os
import sys

import pytest

from tests.real.moves.outcomes import table


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A run of hours tells at once what has failed."""
    if report.failed and os.environ.get("MATRIX"):
        sys.stderr.write(f"\n{report.nodeid}\n{report.longreprtext}\n")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in table():
        terminalreporter.write_line(line)
