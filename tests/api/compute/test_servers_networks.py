"""Creating servers with networks, ports, addresses and security groups, as they are asked for and as they are
refused.
"""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.testing.embedded import audits, holdings
from tests.api.compute.conftest import Whole
from tests.api.compute.whole_cloud import NOBODYS

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def addresses(whole: Whole, uuid: str) -> dict[str, list[str]]:
    shown = await whole.shown(uuid)
    return {name: [each["addr"] for each in entries] for name, entries in shown["addresses"].items()}


@pytest.mark.capability("API-67")
async def test_none(whole: Whole) -> None:
    instance = await whole.made(networks="none")
    assert await whole.vifs(instance.uuid) == ()
    shown = await whole.shown(instance.uuid)
    assert shown["addresses"] == {}
    assert "security_groups" not in shown


@pytest.mark.parametrize(("version", "networks"), [(36, None), (36, []), (37, []), (1, None)])
async def test_the_only_network_there_is(whole: Whole, version: int, networks: Any) -> None:
    instance = await whole.made(version, networks=networks)
    (vif,) = await whole.vifs(instance.uuid)
    assert vif.network_name == "private"
    shown = await whole.shown(instance.uuid)
    (entry,) = shown["addresses"]["private"]
    assert entry == {
        "addr": vif.fixed_ips[0].address,
        "version": 4,
        "OS-EXT-IPS:type": "fixed",
        "OS-EXT-IPS-MAC:mac_addr": vif.mac,
    }
    assert shown["security_groups"] == [{"name": "default"}]
    await whole.gone(instance.uuid)


@pytest.mark.parametrize("networks", [None, "all", "", {}, 1, [1], [None], ["auto"], [{"uuid": 1}]])
async def test_networks_must_be_said_from_2_37_on(whole: Whole, networks: Any) -> None:
    assert "networks" in await whole.refused(400, 37, networks=networks)


@pytest.mark.parametrize("word", ["auto", "none"])
async def test_words_are_of_2_37(whole: Whole, word: str) -> None:
    assert "networks" in await whole.refused(400, 36, networks=word)


@pytest.mark.capability("API-67")
async def test_auto_takes_the_network_there_is(whole: Whole) -> None:
    instance = await whole.made(networks="auto")
    assert list(await addresses(whole, instance.uuid)) == ["private"]
    await whole.gone(instance.uuid)


async def test_networks_in_their_order(whole: Whole) -> None:
    one = await whole.network_of("192.0.2.0/24", name="one")
    two = await whole.network_of("198.51.100.0/24", name="two")
    instance = await whole.made(networks=[{"uuid": two}, {"uuid": one, "tag": "front"}, {"uuid": two}])
    vifs = await whole.vifs(instance.uuid)
    assert [vif.network_id for vif in vifs] == [two, one, two]
    assert [vif.tag for vif in vifs] == [None, "front", None]
    found = await addresses(whole, instance.uuid)
    assert {name: len(each) for name, each in found.items()} == {"two": 2, "one": 1}
    await whole.gone(instance.uuid)
    for network in (one, two):
        assert (await whole.network("DELETE", f"/networks/{network}")).status == 204


async def test_several_networks_and_none_named(whole: Whole) -> None:
    other = await whole.network_of("192.0.2.0/24", name="other")
    for version, networks in ((36, None), (104, "auto"), (104, [])):
        reason = await whole.refused(409, version, networks=networks)
        assert reason == "Multiple possible networks found, use a Network ID to be more specific."
    assert (await whole.network("DELETE", f"/networks/{other}")).status == 204


async def test_an_address_of_ones_choice(whole: Whole) -> None:
    network = await whole.network_of("192.0.2.0/24", name="chosen")
    asked = [{"uuid": network, "fixed_ip": "192.0.2.77"}]
    instance = await whole.made(networks=asked)
    assert await addresses(whole, instance.uuid) == {"chosen": ["192.0.2.77"]}
    assert "192.0.2.77" in await whole.refused(409, networks=asked)
    outside = [{"uuid": network, "fixed_ip": "203.0.113.1"}]
    assert "203.0.113.1" in await whole.refused(400, networks=outside)
    await whole.refused(400, networks=[{"fixed_ip": "192.0.2.78"}])
    await whole.refused(400, networks=[{"uuid": network, "fixed_ip": "elsewhere"}])
    await whole.gone(instance.uuid)
    again = await whole.made(networks=asked)
    assert await addresses(whole, again.uuid) == {"chosen": ["192.0.2.77"]}
    await whole.gone(again.uuid)


async def test_ipv6(whole: Whole) -> None:
    network = await whole.network_of("2001:db8:1::/64", name="six")
    instance = await whole.made(networks=[{"uuid": network, "fixed_ip": "2001:DB8:1:0::77"}])
    shown = await whole.shown(instance.uuid)
    assert [(each["addr"], each["version"]) for each in shown["addresses"]["six"]] == [("2001:db8:1::77", 6)]
    await whole.gone(instance.uuid)


async def test_a_port_that_the_user_made(whole: Whole) -> None:
    network = await whole.network_of("192.0.2.0/24", name="ported")
    port = await whole.new("port", network_id=network, name="mine")
    instance = await whole.made(networks=[{"port": port["id"], "tag": "nic"}, {"uuid": network}])
    vifs = await whole.vifs(instance.uuid)
    assert (vifs[0].port_id, vifs[0].tag, vifs[0].mac) == (port["id"], "nic", port["mac_address"])
    assert len(vifs) == 2
    now = (await whole.network("GET", f"/ports/{port['id']}")).json["port"]
    assert (now["device_id"], now["device_owner"]) == (instance.uuid, "compute:nova")
    reason = await whole.refused(409, networks=[{"port": port["id"]}])
    assert reason == f"Port {port['id']} is still in use."
    await whole.gone(instance.uuid)
    now = (await whole.network("GET", f"/ports/{port['id']}")).json["port"]
    assert (now["device_id"], now["device_owner"], now["name"]) == ("", "", "mine")
    left = (await whole.network("GET", f"/ports?network_id={network}")).json["ports"]
    assert [each["id"] for each in left if not each["device_owner"]] == [port["id"]]
    assert not [each for each in left if each["device_owner"].startswith("compute:")]


async def test_a_port_is_in_groups_of_its_own(whole: Whole) -> None:
    """Not in those that are asked for with the server; changes at the network service are seen."""
    network = await whole.network_of("192.0.2.0/24", name="grouped")
    one = await whole.new("security_group", name="one")
    two = await whole.new("security_group", name="two")
    port = await whole.new("port", network_id=network, security_groups=[one["id"]])
    instance = await whole.made(networks=[{"port": port["id"]}], security_groups=[{"name": "two"}])
    assert (await whole.shown(instance.uuid))["security_groups"] == [{"name": "one"}]
    for ids, names in (([two["id"]], ["two"]), ([one["id"], two["id"]], ["one", "two"]), ([], [])):
        body = {"port": {"security_groups": ids}}
        assert (await whole.network("PUT", f"/ports/{port['id']}", body)).status == 200
        shown = (await whole.shown(instance.uuid)).get("security_groups", [])
        assert sorted(each["name"] for each in shown) == names
    await whole.gone(instance.uuid)


async def test_a_port_beats_its_network(whole: Whole) -> None:
    """Both are named: the port says which network it is on."""
    network = await whole.network_of("192.0.2.0/24", name="beaten")
    port = await whole.new("port", network_id=network)
    instance = await whole.made(networks=[{"port": port["id"], "uuid": network}])
    assert [vif.port_id for vif in await whole.vifs(instance.uuid)] == [port["id"]]
    await whole.gone(instance.uuid)


async def test_ports_and_networks_that_cannot_be_had(whole: Whole) -> None:
    theirs = await whole.network_of("192.0.2.0/24", "other", name="theirs")
    their_port = await whole.new("port", "other", network_id=theirs)
    bare = await whole.network_of(None, name="bare")
    without = await whole.new("port", network_id=bare)
    cases: list[tuple[Any, str]] = [
        ({"uuid": theirs}, f"Network {theirs} could not be found."),
        ({"uuid": NOBODYS}, f"Network {NOBODYS} could not be found."),
        ({"uuid": bare}, f"Network {bare} requires a subnet in order to boot instances on."),
        ({"port": their_port["id"]}, f"Port id {their_port['id']} could not be found."),
        ({"port": NOBODYS}, f"Port id {NOBODYS} could not be found."),
        ({"port": without["id"]}, f"Port {without['id']} requires a FixedIP in order to be used."),
        ({"uuid": "private"}, "network uuid is not in proper format (private)"),
        ({"port": "x"}, "port"),
        ({}, "uuid"),
        ({"tag": "t"}, "uuid"),
        ({"port": their_port["id"], "fixed_ip": "192.0.2.9"}, "cannot be specified together"),
        ({"uuid": NOBODYS, "colour": "red"}, "colour"),
        ({"uuid": NOBODYS, "tag": "a,b"}, "tag"),
    ]
    for entry, reason in cases:
        assert reason in await whole.refused(400, networks=[entry]), entry
    twice = await whole.new("port", network_id=await whole.network_of("192.0.2.0/24", name="twice"))
    await whole.refused(400, networks=[{"port": twice["id"]}, {"port": twice["id"]}])


@pytest.mark.capability("API-68")
async def test_several_servers_share_no_port_and_no_address(whole: Whole) -> None:
    network = await whole.network_of("192.0.2.0/24", name="shared not")
    port = await whole.new("port", network_id=network)
    reason = await whole.refused(400, max_count=2, networks=[{"port": port["id"]}])
    assert "single configured port ID" in reason
    reason = await whole.refused(400, max_count=2, networks=[{"uuid": network, "fixed_ip": "192.0.2.9"}])
    assert "Invalid fixed IP" in reason
    assert (await whole.create(min_count=2, networks=[{"uuid": network}])).status == 202


@pytest.mark.parametrize(
    ("version", "good"), [(31, False), (32, True), (36, True), (37, False), (41, False), (42, True)]
)
async def test_tags_of_networks_and_their_gap(whole: Whole, version: int, good: bool) -> None:
    network = await whole.private()
    networks = [{"uuid": network, "tag": "nic"}]
    if good:
        assert (await whole.create(version, networks=networks)).status == 202
    else:
        assert "tag" in await whole.refused(400, version, networks=networks)


@pytest.mark.capability("API-67")
async def test_the_ports_quota_lowers_the_count(whole: Whole) -> None:
    await whole.quiet()
    network = await whole.private()
    path = f"/quotas/{whole.project}"
    used = (await whole.network("GET", f"{path}/details", who="admin")).json["quota"]["port"]["used"]
    assert (await whole.network("PUT", path, {"quota": {"port": used + 2}}, who="admin")).status == 200
    try:
        reason = await whole.refused(403, min_count=3, max_count=5, networks=[{"uuid": network}])
        assert "Maximum number of ports exceeded" in reason
        reply = await whole.create(max_count=5, networks=[{"uuid": network}], return_reservation_id=True)
        reservation = reply.json["reservation_id"]
        made = (await whole.api("GET", f"/servers?reservation_id={reservation}")).json["servers"]
        assert len(made) == 2
        await whole.quiet()
        assert "Maximum number of ports exceeded" in await whole.refused(403, networks=[{"uuid": network}])
    finally:
        assert (await whole.network("DELETE", path, who="admin")).status == 204


async def test_a_port_that_goes_while_the_server_is_built(whole: Whole) -> None:
    """Between the check and the binding: the server says so, and nothing is left of it."""
    network = await whole.network_of("192.0.2.0/24", name="fleeting")
    port = await whole.new("port", network_id=network)
    allocate = whole.cloud.network.allocate

    async def first_delete(*args: Any, **kwargs: Any) -> Any:
        await whole.network("DELETE", f"/ports/{port['id']}")
        return await allocate(*args, **kwargs)

    whole.cloud.network.allocate = first_delete  # type: ignore[method-assign]
    try:
        instance = await whole.made(networks=[{"port": port["id"]}])
    finally:
        whole.cloud.network.allocate = allocate  # type: ignore[method-assign]
    assert instance.vm_state == "error"
    assert port["id"] in (await whole.shown(instance.uuid))["fault"]["message"]
    assert (await holdings(whole.cloud, instance.uuid)).nothing
    assert await audits(whole.cloud) == []


@pytest.mark.capability("API-66")
async def test_security_groups(whole: Whole) -> None:
    network = await whole.private()
    group = await whole.new("security_group", name="web")
    asked = [{"name": "web"}, {"name": "default"}, {"name": "web"}]
    reply = await whole.create(networks=[{"uuid": network}], security_groups=asked)
    assert reply.json["server"]["security_groups"] == [{"name": "web"}, {"name": "default"}]
    uuid = reply.json["server"]["id"]
    await whole.settled(uuid)
    assert (await whole.shown(uuid))["security_groups"] == [{"name": "web"}, {"name": "default"}]
    port = (await whole.network("GET", f"/ports?device_id={uuid}")).json["ports"][0]
    assert group["id"] in port["security_groups"]
    assert len(port["security_groups"]) == 2
    by_id = await whole.made(networks=[{"uuid": network}], security_groups=[{"name": group["id"]}])
    port = (await whole.network("GET", f"/ports?device_id={by_id.uuid}")).json["ports"][0]
    assert port["security_groups"] == [group["id"]]
    for name in ("nowhere", NOBODYS):
        assert name in await whole.refused(
            400, networks=[{"uuid": network}], security_groups=[{"name": name}]
        )
    await whole.new("security_group", "other", name="theirs")
    reason = await whole.refused(400, networks=[{"uuid": network}], security_groups=[{"name": "theirs"}])
    assert reason == "Security group theirs not found."
    await whole.new("security_group", name="web")
    reason = await whole.refused(409, networks=[{"uuid": network}], security_groups=[{"name": "web"}])
    assert "Multiple security groups" in reason


async def test_networks_need_a_right_of_their_own(whole: Whole) -> None:
    path = whole.policy_file
    path.write_text("os_compute_api:servers:create:attach_network: role:admin\n")
    try:
        assert "attach_network" in await whole.refused(403, networks=[{"uuid": NOBODYS}])
        assert (await whole.create(networks="none")).status == 202
    finally:
        path.unlink()
    assert "could not be found" in await whole.refused(400, networks=[{"uuid": NOBODYS}])


async def test_an_external_network_is_for_administrators(whole: Whole) -> None:
    network = await whole.network_of("203.0.113.0/24", "admin", name="outside", **{"router:external": True})
    reason = await whole.refused(403, networks=[{"uuid": network}])
    assert reason == f"It is not allowed to create an interface on external network {network}"
    assert (await whole.made(who="admin", networks=[{"uuid": network}])).vm_state == "active"
