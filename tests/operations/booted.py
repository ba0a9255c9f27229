"""Hosts that are off and on again before anybody has noticed."""

from __future__ import annotations

import msgspec

from kilonova.registration import register
from tests.operations.dead_hosts import Hosts


async def booted(three: Hosts, name: str, *, resumes: bool = True, power_cut: bool = True) -> None:
    """A host is off and on again, and its agent comes up."""
    host = three.hosts[name]
    if power_cut:
        host.driver.guest_file.lose_power()
    report = msgspec.structs.replace(await host.driver.report(), starting=True, resume_guests=resumes)
    await register(three.cloud.cloud, report)
    await host.agent.tell_of_guests()
