"""Doing the same with many things at once, so that one that fails holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import TypeVar

import structlog

from kilonova.errors import HostFault, KilonovaError

T = TypeVar("T")

log = structlog.get_logger("kilonova.l2agent")


async def gathered(calls: Mapping[str, Awaitable[T]]) -> tuple[dict[str, T], dict[str, KilonovaError]]:
    """What each call gave, and the error of each that failed, by their keys.

    What is no error of ours (a full disk, a fault in the program) counts as one of this host.
    """
    results = await asyncio.gather(*calls.values(), return_exceptions=True)
    given: dict[str, T] = {}
    failed: dict[str, KilonovaError] = {}
    for key, result in zip(calls, results, strict=True):
        if isinstance(result, KilonovaError):
            failed[key] = result
        elif isinstance(result, Exception):
            log.error("a call failed", id=key, error=repr(result), exc_info=result)
            failed[key] = HostFault(f"{type(result).__name__}: {result}")
        elif isinstance(result, BaseException):
            raise result
        else:
            given[key] = result
    return given, failed
