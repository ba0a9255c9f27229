"""Guests that are sent between two real hosts which share a directory."""

from __future__ import annotations

import pytest

from kilonova.errors import HostFault
from tests.real.live_hosts import pair, stayed

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.capability("MG-LM-8")
async def test_on_a_shared_directory() -> None:
    """libvirt does not know ours as shared; only who says so gets his guest sent all the same."""
    async with pair(shared=True) as hosts:
        spec = await hosts.running(hosts.spec(20))
        with pytest.raises(HostFault, match="both hosts share it"):
            await hosts.planned(spec, hosts.one, hosts.two, block=True)
        plan = await hosts.planned(spec, hosts.one, hosts.two)
        assert plan.shared_path and not plan.block and not plan.files and not plan.disks
        outcome = await hosts.one.sends(spec, plan)
        assert outcome.state == "failed" and "nsafe migration" in outcome.reason
        await stayed(spec, hosts.one, hosts.two)
        for source, target in ((hosts.one, hosts.two), (hosts.two, hosts.one)):
            await source.again(unsafe=True)
            plan = await hosts.planned(spec, source, target, block=False)
            assert (await source.sends(spec, plan)).state == "completed"
            await hosts.passed(spec, source, target, plan)
