"""What a project used, from the life of real servers."""

from __future__ import annotations

from kilonova.app import EmbeddedCloud
from kilonova.clock import SECOND, iso_micro
from kilonova.errors import Failed
from kilonova.model.states import Vm
from kilonova.operations import delete
from kilonova.testing.embedded import fake_driver, member, settled
from tests.crash.scenes import boot
from tests.operations.test_hosts import api_of


async def test_servers_count_from_their_launch_to_their_end(cloud: EmbeddedCloud) -> None:
    living, ended = await boot(cloud, "living"), await boot(cloud, "ended")
    for uuid in (living, ended):
        assert (await settled(cloud, uuid)).vm_state == Vm.ACTIVE
    fake_driver(cloud).faults.add("start", Failed("no kernel"))
    broken = await boot(cloud, "broken")  # it never ran, and costs nothing
    assert (await settled(cloud, broken)).vm_state == Vm.ERROR
    await delete.submit(cloud.cloud, member(cloud), ended)
    gone = await settled(cloud, ended)
    api, project = api_of(cloud), member(cloud).project_id
    start = iso_micro(cloud.clock.now() - 3600 * SECOND)
    reply = await api("GET", f"/os-simple-tenant-usage/{project}?start={start}", v=75)
    usage = reply.json["tenant_usage"]
    servers = {one["name"]: one for one in usage["server_usages"]}
    assert set(servers) == {"living", "ended"}
    assert (servers["living"]["state"], servers["living"]["ended_at"]) == ("active", None)
    assert gone.terminated_at is not None and gone.launched_at is not None
    assert servers["ended"]["state"] == "terminated"
    assert servers["ended"]["ended_at"] == iso_micro(gone.terminated_at)
    ran = (gone.terminated_at - gone.launched_at) / (3600 * SECOND)
    assert servers["ended"]["hours"] == ran > 0
    assert usage["total_hours"] == servers["living"]["hours"] + ran
    assert usage["total_vcpus_usage"] == usage["total_hours"]  # of one vCPU each
    assert usage["total_memory_mb_usage"] == 128 * usage["total_hours"]
