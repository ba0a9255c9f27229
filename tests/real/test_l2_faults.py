"""What goes wrong on a host, and what outlives what: the switch, its database, the service, the agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kilonova.clock import SystemClock
from kilonova.errors import HostFault, Unreachable
from kilonova.l2agent import namespace
from kilonova.l2agent.agent import L2Agent
from kilonova.l2agent.openflow import FlowTable
from kilonova.l2agent.options import L2Options
from kilonova.l2agent.ovsdb import Ovsdb
from kilonova.l2agent.reach import open_connection_in
from kilonova.testing.clock import VirtualClock
from tests.real.dhcp_client import ask_dhcp
from tests.real.guests import Guest, eventually
from tests.real.l2lab import (
    BRIDGE,
    INSTANCE,
    PREFIX,
    Lab,
    daemon_pid,
    dump,
    kill_daemon,
    kill_daemon_at_once,
    namespaces,
    serve_metadata,
    settle,
    start_database,
    start_vswitchd,
)
from tests.real.memory_cloud import PING_IN, MemoryCloud, rule_in, tcp_in
from tests.real.udp import answers, udp_echo

pytestmark = pytest.mark.real


@contextlib.asynccontextmanager
async def talking(lab: Lab, server: Guest, client: Guest, port: int = 80) -> AsyncIterator[Callable[[], int]]:
    """A TCP connection over which words go to and fro all the time; gives how often.

    Fails at its end if a word took longer than ``patience`` or the connection broke.
    """
    async with server.echo_server(port):
        reader, writer = await open_connection_in(client.namespace, server.address or "", port, timeout=30)
        rounds = 0

        async def talk() -> None:
            nonlocal rounds
            while True:
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                rounds += 1
                await asyncio.sleep(0.01)

        task = asyncio.create_task(talk())
        try:
            yield lambda: rounds
            before = rounds
            await eventually(lambda: rounds > before + 3 or task.done())
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            writer.transport.abort()


async def goes_on(rounds: Callable[[], int], by: int = 5) -> None:
    before = rounds()
    await eventually(lambda: rounds() >= before + by)


# ---- the agent ----


async def test_a_new_agent_takes_over_without_a_flap(lab: Lab) -> None:
    """The old one is gone and the network service is silent, and the guests notice nothing."""
    network = lab.cloud.network(vlan=10)
    server, client = await lab.boot(network, "10.0.0.11", tcp_in(80)), await lab.boot(network, "10.0.0.12")
    servers = lab.dnsmasqs()
    before = [(lab.port(guest).zone, lab.port(guest).tag) for guest in (server, client)]
    changes: list[set[str]] = []
    async with talking(lab, server, client) as rounds:
        lab.switch._on_change = changes.append  # whatever is done to a port of the bridge
        await lab.agent.stop()
        await goes_on(rounds)
        assert await ask_dhcp(client) is not None  # DHCP needs no agent
        lab.cloud.answers = False
        ofctl = ["ovs-ofctl", "-O", "OpenFlow14", "add-flow", BRIDGE, "priority=7,actions=NORMAL"]
        subprocess.run(ofctl, check=True)
        lab.agent = lab.new_agent(interval=3600)
        await lab.agent.start()
        late = lab.cloud.port(network, "10.0.0.13")
        await lab.plugger.plug(late, INSTANCE, "i")
        await goes_on(rounds)  # and nothing is cut while nobody can say what is right
        assert lab.port(late).is_dead
        lab.cloud.news.clear()
        lab.cloud.answers = True
        await lab.cloud.up(late)
        await eventually(lambda: len(lab.cloud.news) == 3)
        await goes_on(rounds)
        await eventually(lambda: not any("priority=7" in line for line in dump()))  # as soon as all is known
    assert {kind for kind, _ in lab.cloud.news} == {"up"}
    assert lab.dnsmasqs() == servers
    assert [(lab.port(guest).zone, lab.port(guest).tag) for guest in (server, client)] == before
    assert set().union(*changes) == {late.devname}
    await lab.plugger.unplug(late, INSTANCE, "i")


async def test_a_new_agent_learns_what_changed_while_it_was_away(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    server, client = await lab.boot(network, "10.0.0.11", tcp_in(80)), await lab.boot(network, "10.0.0.12")
    gone = await lab.boot(network, "10.0.0.13")
    async with server.echo_server(80, 81):
        assert await client.connects("10.0.0.11", 80)
        await lab.agent.stop()
        lab.cloud.rules(server, tcp_in(81))
        lab.cloud.withdraw(gone)
        lab.agent = lab.new_agent()
        await lab.agent.start()
        assert await client.connects("10.0.0.11", 81)
        await eventually(lambda: lab.port(gone).is_dead)
        settle()
        assert not await client.connects("10.0.0.11", 80, 0.4)
        assert not await gone.pings("10.0.0.2", 0.4)
    assert ("down", gone.vif.port_id) in lab.cloud.news


async def test_a_new_agent_removes_what_nobody_wants_and_only_its_own(lab: Lab) -> None:
    mine, other = lab.cloud.network(vlan=10), lab.cloud.network(vlan=11)
    guest, gone = await lab.boot(mine, "10.0.0.11"), await lab.boot(other, "10.0.0.12")
    spaces = [lab.agent.namespace(network) or "" for network in (mine, other)]
    await lab.agent.stop()
    await namespace.create("kl-000000000000")  # looks like ours, but we did not make it
    ofctl = ["ovs-ofctl", "-O", "OpenFlow14"]
    subprocess.run([*ofctl, "add-flow", BRIDGE, "priority=7,actions=NORMAL"], check=True)
    await lab.unplug(gone)
    lab.agent = lab.new_agent()
    await lab.agent.start()
    await eventually(lambda: not namespace.exists(spaces[1]))
    assert namespace.exists(spaces[0]) and namespace.exists("kl-000000000000")
    await namespace.remove("kl-000000000000")
    await eventually(lambda: not any("priority=7" in line for line in dump()))
    assert await guest.pings("10.0.0.2")
    assert len(lab.dnsmasqs()) == 1


async def test_what_others_do_to_flows_and_ports_is_undone(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    await lab.restart_agent(interval=0.5)
    guest, other = await lab.boot(network, "10.0.0.11"), await lab.boot(network, "10.0.0.12")
    assert await other.pings("10.0.0.11")
    subprocess.run(["ovs-vsctl", "set", "port", guest.vif.devname, "tag=99"], check=True)
    await eventually(lambda: lab.port(guest).is_access(10))
    subprocess.run(["ovs-vsctl", "clear", "port", guest.vif.devname, "external_ids"], check=True)
    await eventually(lambda: lab.port(guest).zone is not None)
    subprocess.run(["ovs-ofctl", "-O", "OpenFlow14", "del-flows", BRIDGE], check=True)
    await eventually(lambda: len(lab.flows_of(guest)) > 10)
    assert await other.pings("10.0.0.11")
    subprocess.run(["ovs-vsctl", "set", "bridge", BRIDGE, "fail_mode=standalone"], check=True)
    mode = ["ovs-vsctl", "get", "bridge", BRIDGE, "fail_mode"]
    await eventually(lambda: subprocess.run(mode, capture_output=True).stdout == b"secure\n")


async def test_a_bridge_that_somebody_deletes_comes_back(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    guests = [await lab.boot(network, f"10.0.0.1{number}") for number in (1, 2)]
    subprocess.run(["ovs-vsctl", "del-br", BRIDGE], check=True)
    await eventually(lambda: len(lab.cloud.news) == 4 and set(lab.switch.ports()) == {BRIDGE})
    await asyncio.gather(*(lab.plugger.plug(guest.vif, INSTANCE, "i") for guest in guests))
    await lab.cloud.up(*(guest.vif for guest in guests))
    assert await guests[0].pings("10.0.0.12")
    assert await ask_dhcp(guests[0]) is not None


async def test_a_host_that_was_switched_off_comes_back_clean(lab: Lab) -> None:
    """The switch's database remembers ports whose guests, taps and namespaces are gone."""
    network = lab.cloud.network(vlan=10)
    stays, gone = await lab.boot(network, "10.0.0.11"), await lab.boot(network, "10.0.0.12")
    await lab.agent.stop()
    await kill_daemon("ovs-vswitchd")
    for guest in (stays, gone):
        await guest.close()
        subprocess.run(["ip", "link", "delete", "dev", guest.vif.devname], check=True)
    os.kill(lab.dnsmasqs()[0], signal.SIGKILL)
    await namespace.remove(namespaces()[0])
    lab.cloud.withdraw(gone)
    start_vswitchd()
    lab.agent = lab.new_agent(interval=0.3)
    await lab.agent.start()
    await eventually(lambda: gone.vif.devname not in lab.switch.ports())
    assert lab.port(stays).is_dead  # until its guest is there again
    await lab.plugger.plug(stays.vif, INSTANCE, "i")
    await stays.open()
    lab.cloud.is_up[stays.vif.port_id].clear()
    await lab.cloud.up(stays.vif)
    assert await stays.pings("10.0.0.2")
    lab.guests.remove(gone)


# ---- the network service ----


async def test_a_silent_network_service_is_asked_again(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    lab.cloud.answers = False
    vif = lab.cloud.port(network, "10.0.0.11")
    guest = await lab.plug(vif, "10.0.0.11")
    await eventually(lambda: vif.devname in lab.switch.ports())
    assert not await guest.pings("10.0.0.2", 1)
    assert lab.port(vif).is_dead and lab.dnsmasqs() == [] and namespaces() == [guest.namespace]
    lab.cloud.answers = True
    await lab.cloud.up(vif)
    assert await guest.pings("10.0.0.2")


async def test_news_that_were_not_heard_are_told_again(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    vif = lab.cloud.port(network, "10.0.0.11")
    failures = 2

    async def deaf(kind: str, port_id: str) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise ConnectionError("not one of ours")

    lab.cloud.on_news = deaf
    guest = await lab.plug(vif, "10.0.0.11")
    await lab.cloud.up(vif)
    failures = 2
    lab.cloud.change(guest, admin_state_up=False)
    await eventually(lambda: ("down", vif.port_id) in lab.cloud.news)
    assert lab.cloud.news == [("up", vif.port_id), ("down", vif.port_id)]


# ---- the switch ----


async def test_a_switch_that_restarts_is_isolated_until_its_flows_are_back(lab: Lab) -> None:
    network, other = lab.cloud.network(vlan=10), lab.cloud.network(vlan=11)
    server, client = await lab.boot(network, "10.0.0.11", tcp_in(80)), await lab.boot(network, "10.0.0.12")
    apart = await lab.boot(other, "10.0.0.13")
    await lab.agent.stop()
    await kill_daemon("ovs-vswitchd")
    start_vswitchd()
    assert dump() == []
    async with client.tap_wire() as wire, server.echo_server(80, 22):
        assert not await server.pings("10.0.0.12", 0.5)
        assert not await apart.pings("10.0.0.2", 0.5)
        assert wire.frames == []
        lab.agent = lab.new_agent()
        await lab.agent.start()
        assert await client.connects("10.0.0.11", 80)
        assert not await client.connects("10.0.0.11", 22, 0.4)


async def test_flows_devices_and_connections_come_back_when_the_switch_restarts(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    server = await lab.boot(network, "10.0.0.11", tcp_in(80), rule_in("udp", 53))
    client = await lab.boot(network, "10.0.0.12")
    vif = lab.cloud.port(network, "10.0.0.13")
    async with talking(lab, server, client) as rounds:
        await goes_on(rounds)
        for _ in range(2):
            await kill_daemon("ovs-vswitchd")
            with pytest.raises(HostFault, match="Is ovs-vswitchd running"):
                await lab.plugger.plug(vif, INSTANCE, "i")
            start_vswitchd()
            await goes_on(rounds)
            lease = await ask_dhcp(client)
            assert lease is not None and lease.address == "10.0.0.12"
            await client.ip("route replace 169.254.169.254/32 via 10.0.0.2")
            assert await client.connects("169.254.169.254", 80)
    async with server.echo_server(22), udp_echo(server, 53):
        assert not await client.connects("10.0.0.11", 22, 0.4)
        assert await answers(client, "10.0.0.11", 53, size=4000)  # in pieces: the switch has forgotten how
    assert len(lab.dnsmasqs()) == 1
    late = await lab.plug(vif, "10.0.0.13")
    await lab.cloud.up(vif)
    assert await late.pings("10.0.0.12")
    assert [kind for kind, port in lab.cloud.news if port == server.vif.port_id] == ["up"]  # no flap


async def test_a_switch_whose_flows_are_back_before_its_restart_is_noticed_has_new_devices(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    server = await lab.boot(network, "10.0.0.11", rule_in("udp", 53))
    client = await lab.boot(network, "10.0.0.12")
    table = FlowTable(Path("/run/openvswitch"), BRIDGE)
    flows = "".join(f"{line}\n" for line in await table.dump())
    kill_daemon_at_once("ovs-vswitchd")  # the agent shares our loop: it notices nothing until we wait
    start_vswitchd()
    replace = ["ovs-ofctl", "-O", "OpenFlow14", "--bundle", "replace-flows", f"unix:{table.socket}", "-"]
    subprocess.run(replace, input=flows, text=True, check=True)
    lease = await ask_dhcp(client)
    assert lease is not None and lease.address == "10.0.0.12"
    async with udp_echo(server, 53):
        assert await answers(client, "10.0.0.11", 53, size=4000)


async def test_the_database_may_restart_and_what_was_missed_is_caught_up(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    first, gone = await lab.boot(network, "10.0.0.11"), await lab.boot(network, "10.0.0.12")
    lab.cloud.news.clear()
    await lab.restart_agent(clock=VirtualClock())  # for which no time passes: nothing is done by waiting
    await eventually(lambda: len(lab.cloud.news) == 2)
    lab.cloud.rules(first, PING_IN, tcp_in(99))
    await eventually(lambda: any("tp_dst=99" in line for line in lab.flows_of(first)))  # it is idle again
    await kill_daemon("ovsdb-server")
    lab.cloud.change(gone, admin_state_up=False)
    with pytest.raises(HostFault, match="Is Open vSwitch running on this host"):
        await lab.plugger.plug(lab.cloud.port(network, "10.0.0.13"), INSTANCE, "i")
    start_database()
    await eventually(lambda: ("down", gone.vif.port_id) in lab.cloud.news)
    assert await first.pings("10.0.0.2")
    second = await lab.boot(network, "10.0.0.14")
    assert await second.pings("10.0.0.11")
    assert not await gone.pings("10.0.0.11", 0.4)


async def test_a_switch_that_hangs_delays_the_news_and_gives_none_too_early(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    await lab.boot(network, "10.0.0.11")
    vif = lab.cloud.port(network, "10.0.0.12")
    bind = lab.cloud.withdraw(vif)
    guest = await lab.plug(vif, "10.0.0.12")
    os.kill(daemon_pid("ovs-vswitchd"), signal.SIGSTOP)
    try:
        bind()
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await lab.cloud.up(vif, timeout=1.5)
    finally:
        os.kill(daemon_pid("ovs-vswitchd"), signal.SIGCONT)
    await lab.cloud.up(vif)
    assert await guest.pings("10.0.0.11")


# ---- the host ----


async def test_no_switch_at_all_is_said_clearly(tmp_path: Path) -> None:
    ovsdb = Ovsdb("unix:/nonexistent/db.sock", SystemClock())
    options = L2Options(host="here", directory=tmp_path)
    agent = L2Agent(MemoryCloud().source(), ovsdb, SystemClock(), options, serve_metadata)
    with pytest.raises(Unreachable, match="Is Open vSwitch running on this host"):
        await agent.start()


async def test_a_switch_that_does_not_run_is_said_clearly(lab: Lab) -> None:
    await lab.agent.stop()
    await kill_daemon("ovs-vswitchd")
    agent = lab.new_agent()
    with pytest.raises(Unreachable, match="Is ovs-vswitchd running"):
        await agent.start()
    start_vswitchd()
    await agent.start()
    await agent.stop()


async def test_a_namespace_that_was_made_by_half_is_made_anew(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    space = namespace.namespace_name(network, PREFIX)
    Path("/run/netns").mkdir(exist_ok=True)
    Path(f"/run/netns/{space}").touch()
    guest = await lab.boot(network, "10.0.0.11")
    assert await guest.pings("10.0.0.2")


async def test_an_address_that_is_taken_holds_up_its_own_network_only(lab: Lab) -> None:
    """Somebody listens at 169.254.169.254 in a network's namespace already."""
    network, other = lab.cloud.network(vlan=10), lab.cloud.network(vlan=11)
    space = namespace.namespace_name(network, PREFIX)
    await namespace.create(space)
    thief = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", space, sys.executable, "-c"),
        "import socket; s = socket.create_server(('0.0.0.0', 80)); print(flush=True); s.accept()",
        stdout=asyncio.subprocess.PIPE,
    )
    assert thief.stdout is not None
    await thief.stdout.readline()
    try:
        vif = lab.cloud.port(network, "10.0.0.11")
        await lab.plug(vif, "10.0.0.11")
        elsewhere = await lab.boot(other, "10.0.0.12")
        assert await elsewhere.pings("10.0.0.2")
        assert lab.port(vif).is_dead
    finally:
        thief.kill()
        await thief.wait()
    await lab.cloud.up(vif)


async def test_what_only_root_may_do_fails_clearly_for_others(lab: Lab) -> None:
    network = lab.cloud.network(vlan=10)
    await lab.boot(network, "10.0.0.11")
    space = lab.agent.namespace(network)
    script = f"""
import asyncio
from kilonova.clock import SystemClock
from kilonova.errors import KilonovaError
from kilonova.l2agent import namespace
from kilonova.l2agent.ovsdb import Ovsdb
from kilonova.l2agent.switch import TABLES, Switch
from kilonova.vif.ovs import OsVifPlugger

async def main():
    ovsdb = Ovsdb("unix:/run/openvswitch/db.sock", SystemClock())
    for call in (
        namespace.create("kn-1"),
        namespace.inside("{space}", int),
        ovsdb.open(TABLES, Switch(ovsdb, "{BRIDGE}", print)),
    ):
        try:
            await call
        except KilonovaError as error:
            print(f"{{type(error).__name__}}: {{error}}")

asyncio.run(main())
"""
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[0].startswith("HostFault: ") or lines[0].startswith("ProgramFailed: ")
    assert "ermission denied" in lines[0] or "not permitted" in lines[0]
    assert lines[1] == (
        f"HostFault: The network namespace '{space}' cannot be entered: Operation not permitted. "
        "Only root may enter one."
    )
    assert lines[2].startswith("Unreachable: No connection to the switch's database")
    assert "Permission denied" in lines[2]
