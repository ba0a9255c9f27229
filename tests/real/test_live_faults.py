"""Live migrations between two real hosts while something dies: one guest is left, and all can tell where."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from kilonova.errors import HostFault, TryAgain, Unreachable
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import LiveOutcome, LivePlan, Presence
from tests.real.guests import eventually
from tests.real.live_hosts import PATIENCE, End, Pair, gone, pair, stayed
from tests.real.live_sender import Order

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

NEVER = 4000  # pages a tick: more than any limit here lets through


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


async def libvirtd_dies(end: End) -> None:
    await end.host.daemons["libvirtd"].kill()


async def libvirtd_is_back(end: End) -> None:
    await end.host.start_libvirtd()
    await end.again()


async def begun_by_another(
    hosts: Pair, spec: GuestSpec, bandwidth: int
) -> tuple[LivePlan, subprocess.Popen[bytes]]:
    """An agent of host one that is a process of its own and sends the guest."""
    plan = await hosts.planned(spec, hosts.one, hosts.two)
    order = hosts.one.instances.parent / "order"
    order.write_bytes(msgspec.msgpack.encode(Order(spec, plan)))
    end = hosts.one
    arguments = (end.host.path("/run/libvirt/libvirt-sock"), end.instances, end.compute_id, end.host.address)
    command = [
        sys.executable,
        "-m",
        "tests.real.live_sender",
        *map(str, arguments),
        str(bandwidth),
        str(order),
    ]
    agent = subprocess.Popen(command)
    await hosts.one.comes_to(spec, Presence.LEAVING)
    return plan, agent


async def test_an_agent_that_is_killed_is_taken_over_from(hosts: Pair) -> None:
    await hosts.one.again(downtime=20_000)  # milliseconds; a tenth of it is allowed at once
    spec = await hosts.running(hosts.spec(NEVER, megabytes=12))
    plan, agent = await begun_by_another(hosts, spec, bandwidth=4)
    agent.kill()
    agent.wait()
    assert await hosts.one.presence(spec) == Presence.LEAVING
    await hosts.one.driver._connection.call(
        lambda link: link.lookupByUUIDString(spec.uuid).migrateSetMaxSpeed(1000)
    )
    outcome = await hosts.one.sends(spec, plan)
    assert outcome.state == "completed" and outcome.elapsed is not None
    assert (await hosts.one.sends(spec, plan)).state == "completed", "however often it is asked"
    await hosts.passed(spec, hosts.one, hosts.two, plan)
    assert (await hosts.one.sends(spec, plan)).state == "gone"
    await gone(spec, hosts.one, hosts.two)


async def test_what_a_killed_agent_has_begun_can_be_called_back(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    plan, agent = await begun_by_another(hosts, spec, bandwidth=4)
    agent.kill()
    agent.wait()
    sent = asyncio.create_task(hosts.one.sends(spec, plan))
    assert await hosts.one.driver.steer_live(spec.uuid, "abort")
    assert (await sent).state == "cancelled"
    await stayed(spec, hosts.one, hosts.two)
    await gone(spec, hosts.one, hosts.two)


async def test_a_call_that_is_cancelled_ends_nothing(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=4)
    sent.cancel()
    await asyncio.wait({sent})
    assert await hosts.one.presence(spec) == Presence.LEAVING
    plan = LivePlan(destination="host2", shared_path=False, block=True)  # it is not asked for anything new
    again = asyncio.create_task(hosts.one.sends(spec, plan))
    assert await hosts.one.driver.steer_live(spec.uuid, "abort")
    assert (await again).state == "cancelled"
    await stayed(spec, hosts.one, hosts.two)
    await gone(spec, hosts.one, hosts.two)


async def test_libvirtd_of_the_source_is_killed(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=4)
    await libvirtd_dies(hosts.one)
    with pytest.raises(Unreachable):
        await sent
    with pytest.raises(Unreachable):
        await hosts.one.driver.locate(spec.uuid)
    await libvirtd_is_back(hosts.one)
    await stayed(spec, hosts.one, hosts.two)
    await gone(spec, hosts.one, hosts.two)


async def test_libvirtd_of_the_destination_is_killed(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=4)
    await libvirtd_dies(hosts.two)
    outcome = await sent
    assert outcome.state == "failed" and outcome.reason
    assert await hosts.one.presence(spec) == Presence.RUNNING
    await libvirtd_is_back(hosts.two)
    await stayed(spec, hosts.one, hosts.two)
    await gone(spec, hosts.one, hosts.two)


async def test_the_destination_loses_its_power(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=4)
    await hosts.two.host.power_off()
    assert (await sent).state == "failed"
    assert await hosts.one.presence(spec) == Presence.RUNNING
    await hosts.two.host.power_on()
    await hosts.two.again()
    await stayed(spec, hosts.one, hosts.two)
    await gone(spec, hosts.one, hosts.two)


async def all_sent(hosts: Pair, spec: GuestSpec) -> asyncio.Task[object]:
    """All of the guest has been sent, and the destination's libvirtd does not let it go on."""
    sent = asyncio.create_task(_nothing_wrong(hosts, spec))
    await hosts.one.comes_to(spec, Presence.LEAVING)

    async def is_going() -> bool:  # the two libvirtds have agreed on everything
        return bool((await hosts.one.driver.live_progress(spec.uuid)).memory_processed)

    await eventually(is_going, PATIENCE)
    hosts.two.host.daemons["libvirtd"].pause()

    async def is_all_sent() -> bool:
        sent = await hosts.one.driver.live_progress(spec.uuid)
        return bool(sent.memory_processed) and sent.memory_remaining == 0

    await eventually(is_all_sent, PATIENCE)
    await asyncio.sleep(1)  # for the source's libvirtd to ask that of the destination to let the guest go on
    return sent


async def _nothing_wrong(hosts: Pair, spec: GuestSpec) -> object:
    plan = await hosts.planned(spec, hosts.one, hosts.two)
    return await hosts.one.sends(spec, plan)


async def held(hosts: Pair) -> GuestSpec:
    """A guest of which nobody but the destination can say where it goes on: its libvirtd is paused, and that
    of the source has been killed after it had asked."""
    await hosts.one.again(bandwidth=16, downtime=20_000)
    spec = await hosts.running(hosts.spec(60))
    sent = await all_sent(hosts, spec)
    await libvirtd_dies(hosts.one)
    with pytest.raises(Unreachable):
        await sent
    await libvirtd_is_back(hosts.one)
    await hosts.one.comes_to(spec, Presence.HELD)
    return spec


async def test_the_source_cannot_tell_and_the_destination_has_it(hosts: Pair) -> None:
    spec = await held(hosts)
    plan = LivePlan(destination="host2", shared_path=False, block=True)
    outcome = await hosts.one.sends(spec, plan)
    assert outcome.state == "gone" and "held" in outcome.reason
    hosts.two.host.daemons["libvirtd"].resume()
    await hosts.two.comes_to(spec, Presence.RUNNING)
    await hosts.two.driver.settle_live(spec)
    await hosts.one.driver.leave_live(spec.uuid, plan)
    assert await hosts.one.presence(spec) == Presence.ABSENT
    assert not hosts.one.files(spec).exists()
    await gone(spec, hosts.one, hosts.two)


async def test_the_source_cannot_tell_and_the_destination_has_it_not(hosts: Pair) -> None:
    spec = await held(hosts)
    await libvirtd_dies(hosts.two)
    await libvirtd_is_back(hosts.two)
    await hosts.two.comes_to(spec, Presence.ABSENT)
    with pytest.raises(HostFault, match="has not come"):
        await hosts.two.driver.settle_live(spec)
    await hosts.one.driver.resume(spec.uuid)
    await stayed(spec, hosts.one, hosts.two)
    await gone(spec, hosts.one, hosts.two)


async def test_nothing_is_settled_or_left_while_it_is_under_way(hosts: Pair) -> None:
    spec = await hosts.running(hosts.spec(NEVER))
    sent = await hosts.begun(spec, bandwidth=4)
    with pytest.raises(TryAgain, match="still coming"):
        await hosts.two.driver.settle_live(spec)
    plan = LivePlan(destination="host2", shared_path=False, block=True)
    with pytest.raises(TryAgain, match="still being sent"):
        await hosts.one.driver.leave_live(spec.uuid, plan)
    with pytest.raises(HostFault, match="on this host already"):
        await hosts.two.driver.receive_live(spec, plan, hosts.images)
    await hosts.one.driver.steer_live(spec.uuid, "abort")
    await sent
    await gone(spec, hosts.one, hosts.two)


async def in_two_halves(hosts: Pair, spec: GuestSpec) -> tuple[asyncio.Task[LiveOutcome], LivePlan]:
    """A guest that goes on at host two while most of its memory is still at host one."""
    await hosts.one.again(bandwidth=4, permit_post_copy=True)
    await hosts.running(spec)
    plan = await hosts.planned(spec, hosts.one, hosts.two)
    sent = asyncio.create_task(hosts.one.sends(spec, plan))
    await hosts.one.comes_to(spec, Presence.LEAVING)
    assert await hosts.one.driver.steer_live(spec.uuid, "force_complete")
    await hosts.two.comes_to(spec, Presence.POSTCOPY)
    return sent, plan


@pytest.mark.capability("MG-LM-22")
@pytest.mark.parametrize("which", ["one", "two"])
async def test_a_libvirtd_is_killed_in_post_copy(hosts: Pair, which: str) -> None:
    spec = hosts.spec(NEVER)
    sent, plan = await in_two_halves(hosts, spec)
    end: End = getattr(hosts, which)
    await libvirtd_dies(end)
    if end is hosts.one:
        with pytest.raises(Unreachable):
            await sent
    await libvirtd_is_back(end)
    if end is hosts.one:
        sent = asyncio.create_task(hosts.one.sends(spec, plan))
    assert (await sent).state == "completed"
    await hosts.two.comes_to(spec, Presence.RUNNING)
    await hosts.passed(spec, hosts.one, hosts.two, plan)
    await gone(spec, hosts.one, hosts.two)


@pytest.mark.capability("MG-LM-22")
async def test_a_guest_in_two_halves_is_put_together_when_the_network_is_back(hosts: Pair) -> None:
    spec = hosts.spec(NEVER)
    sent, plan = await in_two_halves(hosts, spec)
    ends = (hosts.one.host, hosts.two.host)
    rule = ("INPUT", "-i", "eth0", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
    for host in ends:
        host.run("iptables", "-A", *rule)
    for host in ends:  # so that both ends know at once; silence takes TCP a quarter of an hour
        host.run("ss", "-K", "src", host.address)
    await eventually(lambda: is_broken(hosts.one, spec), PATIENCE)
    assert await hosts.one.presence(spec) == Presence.POSTCOPY
    assert not sent.done()
    for host in ends:
        host.run("iptables", "-D", *rule)
    assert (await sent).state == "completed"
    await hosts.two.comes_to(spec, Presence.RUNNING)
    await hosts.passed(spec, hosts.one, hosts.two, plan)
    await gone(spec, hosts.one, hosts.two)


async def is_broken(end: End, spec: GuestSpec) -> bool:
    return (await end.driver._live._sender.job(spec.uuid).seen()).is_broken
