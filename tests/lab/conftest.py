"""Hosts for the tests of this directory: they run in tools/sandbox.sh."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.testing.lab.lab import Lab


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """Two hosts that share a directory of guests' files."""
    directory = Path(tempfile.mkdtemp(prefix="kn-lab-"))  # short: sockets are below it
    made = Lab(directory, shared=True)
    try:
        await made.up(2)
        yield made
    finally:
        await made.down()
        shutil.rmtree(directory)
