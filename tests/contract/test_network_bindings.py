"""Ports that are bound to two hosts while their server moves: as Neutron's extended port bindings."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.errors import Failed
from kilonova.model.port import Vif
from tests.contract.rigs import Rig, new
from tests.contract.test_network import Cloud, on, with_port

DETAILS = {"datapath_type": "system", "other": "of the host's own"}


@pytest.fixture
def cloud(rig: Rig) -> Cloud:
    return Cloud(rig)


async def bindings(cloud: Cloud, vif: Vif) -> dict[str, dict[str, Any]]:
    """The port's bindings by host, as the API shows them."""
    reply = (await cloud.rest("GET", f"/v2.0/ports/{vif.port_id}/bindings")).expect(200)
    return {each["host"]: each for each in reply.json["bindings"]}


async def states(cloud: Cloud, vif: Vif) -> dict[str, str]:
    return {host: each["status"] for host, each in (await bindings(cloud, vif)).items()}


@pytest.mark.capability("MG-LM-5")
async def test_a_server_goes_to_another_host_and_its_former_bindings_are_removed(cloud: Cloud) -> None:
    one, two, server = await cloud.network(), await cloud.network("10.2.0.0/24"), new()
    before = await cloud.boot(server, on(one), on(two))
    for _ in range(2):
        there = await cloud.service.add_bindings(server, "two", DETAILS)
        assert [vif.port_id for vif in there] == [vif.port_id for vif in before]
        for vif, old in zip(there, before, strict=True):
            assert (vif.mac, vif.fixed_ips, vif.vif_type) == (old.mac, old.fixed_ips, "ovs")
            assert vif.details["datapath_type"] == "system" and "other" not in vif.details
            assert await states(cloud, vif) == {"one": "ACTIVE", "two": "INACTIVE"}
    assert await cloud.service.vifs(server) == before, "the ports are where they were"
    for _ in range(2):
        after = await cloud.service.activate_bindings(server, "two")
        assert after == there
        assert [await states(cloud, vif) for vif in after] == 2 * [{"one": "INACTIVE", "two": "ACTIVE"}]
    assert await cloud.service.vifs(server) == after
    port = await cloud.port(after[0].port_id)
    assert port is not None and port["binding:host_id"] == "two"
    assert port["binding:vif_details"]["datapath_type"] == "system"
    for _ in range(2):
        await cloud.service.remove_bindings(server, "one")
        assert [await states(cloud, vif) for vif in after] == 2 * [{"two": "ACTIVE"}]
    await cloud.service.deallocate(server)


async def test_a_move_that_is_given_up_leaves_the_ports_as_they_were(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (before,) = await cloud.boot(server, on(net))
    shown = await cloud.port(before.port_id)
    await cloud.service.add_bindings(server, "two", DETAILS, {before.port_id: {"os_vif_delegation": True}})
    await cloud.service.remove_bindings(server, "two")
    assert await cloud.service.vifs(server) == (before,)
    assert await states(cloud, before) == {"one": "ACTIVE"}
    now = await cloud.port(before.port_id)
    assert now is not None and shown is not None
    assert {**now, "updated_at": 0, "revision_number": 0} == {**shown, "updated_at": 0, "revision_number": 0}
    await cloud.service.remove_bindings(server, "one")
    assert await states(cloud, before) == {"one": "ACTIVE"}, "the binding that is active is not removed"


async def test_there_and_back_again(cloud: Cloud) -> None:
    """A move that is reverted: the first binding is as it was."""
    net, server = await cloud.network(), new()
    (before,) = await cloud.boot(server, on(net))
    await cloud.service.add_bindings(server, "two", DETAILS)
    await cloud.service.activate_bindings(server, "two")
    assert await cloud.service.activate_bindings(server, "one") == (before,)
    await cloud.service.remove_bindings(server, "two")
    assert await cloud.service.vifs(server) == (before,)
    assert await states(cloud, before) == {"one": "ACTIVE"}


async def test_a_host_that_has_the_ports_gets_no_second_binding(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (before,) = await cloud.boot(server, on(net))
    assert await cloud.service.add_bindings(server, "one", DETAILS, {}) == (before,)
    assert await states(cloud, before) == {"one": "ACTIVE"}


async def test_nothing_is_activated_where_it_is_not_bound(cloud: Cloud) -> None:
    one, two, server = await cloud.network(), await cloud.network("10.2.0.0/24"), new()
    first, second = await cloud.boot(server, on(one), on(two))
    await cloud.service.add_bindings(server, "two", DETAILS)
    path = f"/v2.0/ports/{second.port_id}/bindings/two"
    (await cloud.rest("DELETE", path)).expect(204)
    with pytest.raises(Failed, match=second.port_id):
        await cloud.service.activate_bindings(server, "two")
    assert await states(cloud, first) == {"one": "ACTIVE", "two": "INACTIVE"}, "all or none"
    assert await cloud.service.vifs(server) == (first, second)


async def test_if_one_port_cannot_be_bound_none_is(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    mine = await cloud.made("port", network_id=net)
    first, second = await cloud.boot(server, on(net), with_port(mine))
    change = {"port": {"binding:vnic_type": "direct"}}
    (await cloud.rest("PUT", f"/v2.0/ports/{mine}", change, "admin")).expect(200)
    with pytest.raises(Failed, match=mine):
        await cloud.service.add_bindings(server, "two", DETAILS)
    assert [await states(cloud, vif) for vif in (first, second)] == 2 * [{"one": "ACTIVE"}]


async def test_a_server_without_ports_has_nothing_to_bind(cloud: Cloud) -> None:
    server = new()
    assert await cloud.service.add_bindings(server, "two", DETAILS) == ()
    assert await cloud.service.activate_bindings(server, "two") == ()
    await cloud.service.remove_bindings(server, "two")


async def test_ports_that_go_take_all_their_bindings_along(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    mine = await cloud.made("port", network_id=net)
    made, own = await cloud.boot(server, on(net), with_port(mine))
    await cloud.service.add_bindings(server, "two", DETAILS, {mine: {"os_vif_delegation": True}})
    await cloud.service.activate_bindings(server, "two")
    await cloud.service.deallocate(server)
    assert (await cloud.rest("GET", f"/v2.0/ports/{made.port_id}/bindings")).status == 404
    assert await bindings(cloud, own) == {}
    shown = await cloud.port(mine)
    assert shown is not None and shown["binding:profile"] == {}
    (await cloud.rest("DELETE", f"/v2.0/ports/{mine}")).expect(204)
    again = await cloud.boot(server, on(net))
    assert await states(cloud, again[0]) == {"one": "ACTIVE"}


async def test_a_port_that_is_bound_to_a_third_host_has_no_other_binding(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (vif,) = await cloud.boot(server, on(net))
    await cloud.service.add_bindings(server, "two", DETAILS, {})
    await cloud.service.activate_bindings(server, "two")
    (there,) = await cloud.boot(server, on(net), host="three")
    assert await states(cloud, vif) == {"three": "ACTIVE"}
    assert there.delegate_create and there.profile == {}, "what the move said was of its destination"


# ---- profiles ----


@pytest.mark.capability("OVS-15", "OVS-24")
async def test_the_marker_of_delegation_survives_the_round_trip_and_stays(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (vif,) = await cloud.boot(server, on(net))
    marked = {vif.port_id: {"os_vif_delegation": True, "card": 7}}
    (there,) = await cloud.service.add_bindings(server, "two", DETAILS, marked)
    assert there.profile == {"os_vif_delegation": True, "card": 7}
    assert (await bindings(cloud, vif))["two"]["profile"] == there.profile
    assert (await bindings(cloud, vif))["one"]["profile"] == {}
    (active,) = await cloud.service.activate_bindings(server, "two")
    assert active == there and await cloud.service.vifs(server) == (there,)
    await cloud.service.remove_bindings(server, "one")
    port = await cloud.port(vif.port_id)
    assert port is not None and port["binding:profile"] == there.profile


@pytest.mark.capability("OVS-16")
@pytest.mark.capability("OVS-18")
@pytest.mark.parametrize(
    ("profile", "made_by_os_vif"),
    [({"os_vif_delegation": True}, True), ({"os_vif_delegation": False}, False), ({"card": 7}, False)],
)
async def test_the_marker_says_who_makes_the_port_at_the_destination(
    cloud: Cloud, profile: dict[str, str | bool | int], made_by_os_vif: bool
) -> None:
    net, server = await cloud.network(), new()
    vif, _ = await cloud.boot(server, on(net), on(net))
    there, unmarked = await cloud.service.add_bindings(server, "two", DETAILS, {vif.port_id: profile})
    assert there.delegate_create is made_by_os_vif
    assert unmarked.delegate_create is False, "a destination that says it of none has it of none"
    active = await cloud.service.activate_bindings(server, "two")
    assert [each.delegate_create for each in active] == [made_by_os_vif, False]
    assert await cloud.service.vifs(server) == active


@pytest.mark.capability("OVS-25")
async def test_ports_of_new_servers_and_of_cold_moves_are_made_by_os_vif(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    mine = await cloud.made("port", network_id=net)
    (vif,) = await cloud.boot(server, with_port(mine))
    assert vif.delegate_create and vif.profile == {}
    (there,) = await cloud.service.add_bindings(server, "two", DETAILS)
    assert there.delegate_create
    await cloud.service.remove_bindings(server, "two")
    (there,) = await cloud.service.add_bindings(server, "two", DETAILS, {})
    assert not there.delegate_create
    await cloud.service.activate_bindings(server, "two")
    await cloud.service.deallocate(server)
    (again,) = await cloud.boot(new(), with_port(mine))
    assert again.delegate_create and again.profile == {}, "what a move said ends with the server"


# ---- the API ----


async def test_bindings_by_the_api(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (vif,) = await cloud.boot(server, on(net))
    path = f"/v2.0/ports/{vif.port_id}/bindings"
    body = {"binding": {"host": "two", "profile": {"card": 7}}}
    made = (await cloud.rest("POST", path, body)).expect(201).json["binding"]
    assert (made["host"], made["status"], made["vif_type"]) == ("two", "INACTIVE", "ovs")
    assert (made["vnic_type"], made["profile"], made["project_id"]) == ("normal", {"card": 7}, "alpha")
    assert (await bindings(cloud, vif))["two"] == made
    assert (await cloud.rest("GET", f"{path}?status=INACTIVE")).json == {"bindings": [made]}
    assert (await cloud.rest("GET", f"{path}?host=one&fields=host")).json == {"bindings": [{"host": "one"}]}
    changed = (await cloud.rest("PUT", f"{path}/two", {"binding": {"profile": {}}})).expect(200).json
    assert changed == {"binding": {**made, "profile": {}}}
    active = (await cloud.rest("PUT", f"{path}/two/activate")).expect(200).json
    assert active == {"binding": {**made, "profile": {}, "status": "ACTIVE"}}
    assert await states(cloud, vif) == {"one": "INACTIVE", "two": "ACTIVE"}
    (await cloud.rest("DELETE", f"{path}/one")).expect(204)
    assert await states(cloud, vif) == {"two": "ACTIVE"}
    extensions = (await cloud.rest("GET", "/v2.0/extensions")).json["extensions"]
    assert "binding-extended" in {each["alias"] for each in extensions}


async def test_what_is_wrong_with_bindings_by_the_api(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (vif,) = await cloud.boot(server, on(net))
    path = f"/v2.0/ports/{vif.port_id}/bindings"
    body = {"binding": {"host": "two"}}
    (await cloud.rest("POST", path, body)).expect(201)
    for method, where, sent, status in (
        ("POST", path, body, 409),
        ("POST", path, {"binding": {"host": "one"}}, 409),
        ("POST", path, {"binding": {"host": "three", "vnic_type": "direct"}}, 409),
        ("POST", path, {"binding": {}}, 400),
        ("POST", path, {"binding": {"host": ""}}, 400),
        ("POST", path, {"binding": {"host": "x", "status": "ACTIVE"}}, 400),
        ("POST", path, {"binding": {"host": "x", "profile": "no"}}, 400),
        ("POST", path, {"port": {}}, 400),
        ("PUT", f"{path}/three", {"binding": {"profile": {}}}, 404),
        ("PUT", f"{path}/two", {"binding": {"host": "four"}}, 400),
        ("PUT", f"{path}/one/activate", None, 409),
        ("PUT", f"{path}/three/activate", None, 404),
        ("DELETE", f"{path}/three", None, 404),
        ("POST", f"/v2.0/ports/{new()}/bindings", body, 404),
    ):
        reply = await cloud.rest(method, where, sent)
        assert reply.status == status, (method, where, sent, reply.text)
    for method, where in (
        ("POST", path),
        ("PUT", f"{path}/two"),
        ("PUT", f"{path}/two/activate"),
        ("DELETE", f"{path}/two"),
    ):
        assert (await cloud.rest(method, where, body, "alice")).status == 403, method
    assert await states(cloud, vif) == {"one": "ACTIVE", "two": "INACTIVE"}
    free = await cloud.made("port", network_id=net)
    reply = await cloud.rest("POST", f"/v2.0/ports/{free}/bindings", body)
    assert reply.status == 400, "only ports of servers are bound to several hosts"


async def test_without_its_active_binding_a_port_is_not_bound(cloud: Cloud) -> None:
    net, server = await cloud.network(), new()
    (vif,) = await cloud.boot(server, on(net))
    (await cloud.rest("DELETE", f"/v2.0/ports/{vif.port_id}/bindings/one")).expect(204)
    assert await bindings(cloud, vif) == {}
    port = await cloud.port(vif.port_id)
    assert port is not None and (port["binding:vif_type"], port["status"]) == ("unbound", "DOWN")
