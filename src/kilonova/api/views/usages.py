"""Usage of projects over a period, added up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kilonova.clock import SECOND, iso_micro
from kilonova.db.usages import ServerUsage

HOUR = 3600 * SECOND


def _hours(server: ServerUsage, start: int, stop: int) -> float:
    begin = max(server.launched_at, start)
    end = stop if server.terminated_at is None else min(stop, server.terminated_at)
    return max(end - begin, 0) / HOUR


def _server(server: ServerUsage, hours: float, now: int) -> dict[str, Any]:
    ended = server.terminated_at
    return {
        "hours": hours,
        "flavor": server.flavor.name,
        "instance_id": server.uuid,
        "name": server.name,
        "tenant_id": server.project_id,
        "memory_mb": server.flavor.memory_mb,
        "local_gb": server.flavor.root_gb + server.flavor.ephemeral_gb,
        "vcpus": server.flavor.vcpus,
        "started_at": iso_micro(server.launched_at),
        "ended_at": None if ended is None else iso_micro(ended),
        "state": server.vm_state if ended is None else "terminated",
        "uptime": ((now if ended is None else ended) - server.launched_at) // SECOND,
    }


def nothing(project_id: str, start: int, stop: int) -> dict[str, Any]:
    """The total of a project that used nothing."""
    return {
        "tenant_id": project_id,
        "start": iso_micro(start),
        "stop": iso_micro(stop),
        "total_hours": 0.0,
        "total_local_gb_usage": 0.0,
        "total_memory_mb_usage": 0.0,
        "total_vcpus_usage": 0.0,
    }


def by_project(
    servers: Iterable[ServerUsage], start: int, stop: int, now: int, *, detailed: bool
) -> list[dict[str, Any]]:
    """One total for each project, in the order in which the projects come."""
    totals: dict[str, dict[str, Any]] = {}
    for server in servers:
        total = totals.get(server.project_id)
        if total is None:
            total = totals[server.project_id] = nothing(server.project_id, start, stop)
            if detailed:
                total["server_usages"] = []
        hours = _hours(server, start, stop)
        total["total_hours"] += hours
        total["total_local_gb_usage"] += (server.flavor.root_gb + server.flavor.ephemeral_gb) * hours
        total["total_memory_mb_usage"] += server.flavor.memory_mb * hours
        total["total_vcpus_usage"] += server.flavor.vcpus * hours
        if detailed:
            total["server_usages"].append(_server(server, hours, now))
    return list(totals.values())
