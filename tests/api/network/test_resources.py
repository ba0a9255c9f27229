"""The five resources over HTTP: made, shown, changed, deleted; who sees what; what is refused and how."""

from __future__ import annotations

import copy
import uuid
from typing import Any

import pytest

from tests.api.network.conftest import Face

NOWHERE = str(uuid.uuid4())


async def test_roots_need_no_token_and_everything_else_does(face: Face) -> None:
    root = await face.get("/", who=None)
    assert root["versions"][0]["id"] == "v2.0"
    assert root["versions"][0]["links"][0]["href"] == face.url + "/v2.0/"
    for path in ("/v2.0", "/v2.0/"):
        names = {each["collection"] for each in (await face.get(path, who=None))["resources"]}
        assert {"networks", "subnets", "ports", "security_groups", "security_group_rules"} <= names
    for who in (None, "nonsense"):
        answer = await face.call("GET", "/networks", who=who)
        assert answer.fault == (401, "HTTPUnauthorized")
        assert answer.headers["x-openstack-request-id"].startswith("req-")
    assert (await face.call("GET", "/nothing")).fault == (404, "HTTPNotFound")
    assert (await face.call("PATCH", "/networks")).fault == (405, "HTTPMethodNotAllowed")


async def test_a_network_with_a_subnet_and_a_port_from_making_to_deleting(face: Face) -> None:
    network = await face.make("network", name="blue", description="sky", mtu=1400)
    assert network["tenant_id"] == network["project_id"] == "alpha"
    assert (network["status"], network["shared"], network["mtu"]) == ("ACTIVE", False, 1400)
    assert not any(name.startswith("provider:") for name in network)
    subnet = await face.make(
        "subnet",
        network_id=network["id"],
        cidr="10.0.0.9/24",
        ip_version=4,
        dns_nameservers=["9.9.9.9"],
        host_routes=[{"destination": "192.0.2.0/24", "nexthop": "10.0.0.9"}],
        allocation_pools=[{"start": "10.0.0.10", "end": "10.0.0.20"}],
    )
    assert (subnet["cidr"], subnet["gateway_ip"], subnet["enable_dhcp"]) == ("10.0.0.0/24", "10.0.0.1", True)
    port = await face.make("port", network_id=network["id"], name="p")
    assert port["fixed_ips"] == [{"subnet_id": subnet["id"], "ip_address": "10.0.0.11"}]
    assert (port["status"], port["binding:vnic_type"]) == ("DOWN", "normal")
    assert "binding:host_id" not in port and len(port["security_groups"]) == 1
    assert (await face.get(f"/networks/{network['id']}"))["network"]["subnets"] == [subnet["id"]]
    seen = (await face.get(f"/ports/{port['id']}", who="admin"))["port"]
    assert (seen["binding:vif_type"], seen["binding:host_id"]) == ("unbound", "")

    changed = await face.call("PUT", f"/ports/{port['id']}", {"port": {"name": "q"}})
    assert (changed.status, changed.body["port"]["name"]) == (200, "q")
    assert changed.body["port"]["revision_number"] > port["revision_number"]
    moved = await face.call(
        "PUT", f"/ports/{port['id']}", {"port": {"fixed_ips": [{"ip_address": "10.0.0.99"}]}}
    )
    assert moved.body["port"]["fixed_ips"][0]["ip_address"] == "10.0.0.99"
    changed = await face.call(
        "PUT",
        f"/subnets/{subnet['id']}",
        {"subnet": {"name": "s", "gateway_ip": None, "dns_nameservers": [], "host_routes": []}},
    )
    assert (changed.body["subnet"]["gateway_ip"], changed.body["subnet"]["dns_nameservers"]) == (None, [])

    assert (await face.call("DELETE", f"/networks/{network['id']}")).fault == (409, "NetworkInUse")
    assert (await face.call("DELETE", f"/subnets/{subnet['id']}")).fault == (409, "SubnetInUse")
    for path in (f"/ports/{port['id']}", f"/subnets/{subnet['id']}", f"/networks/{network['id']}"):
        assert (await face.call("DELETE", path)).status == 204
        assert (await face.call("DELETE", path)).status == 404
        assert (await face.call("GET", path)).fault[1].endswith("NotFound")


async def test_what_belongs_to_another_tenant_is_not_found(face: Face) -> None:
    network = await face.make("network", name="mine")
    subnet = await face.make("subnet", network_id=network["id"], cidr="10.0.0.0/24", ip_version=4)
    port = await face.make("port", network_id=network["id"])
    group = await face.make("security_group", name="g")
    rule = group["security_group_rules"][0]
    for kind, plural, found in (
        ("network", "networks", network),
        ("subnet", "subnets", subnet),
        ("port", "ports", port),
        ("security_group", "security-groups", group),
        ("security_group_rule", "security-group-rules", rule),
    ):
        path = f"/{plural}/{found['id']}"
        for method, body in (("GET", None), ("DELETE", None), ("PUT", {kind: {"description": "x"}})):
            if method == "PUT" and kind == "security_group_rule":
                continue
            answer = await face.call(method, path, body, who="bob")
            assert answer.status == 404 and answer.fault[1].endswith("NotFound"), (path, answer.text)
        listed = (await face.get(f"/{plural}?id={found['id']}", who="bob"))[plural.replace("-", "_")]
        assert listed == []
        assert (await face.call("GET", path, who="admin")).status == 200
        assert (await face.call("PUT", f"{path}/tags/x", who="bob")).status == 404
    assert (await face.call("POST", "/ports", {"port": {"network_id": network["id"]}}, "bob")).fault == (
        404,
        "NetworkNotFound",
    )
    answer = await face.call(
        "POST", "/ports", {"port": {"network_id": network["id"], "security_groups": [NOWHERE]}}
    )
    assert answer.fault == (404, "SecurityGroupNotFound")
    theirs = await face.make("security_group", who="bob", name="b")
    answer = await face.call("PUT", f"/ports/{port['id']}", {"port": {"security_groups": [theirs["id"]]}})
    assert answer.fault == (404, "SecurityGroupNotFound")
    answer = await face.call("POST", "/networks", {"network": {"name": "x", "tenant_id": "beta"}})
    assert answer.fault == (400, "HTTPBadRequest")
    given = await face.make("network", who="admin", name="x", project_id="beta")
    assert given["tenant_id"] == "beta"
    assert (await face.get(f"/networks/{given['id']}", who="bob"))["network"]["name"] == "x"


async def test_the_shared_network_is_everybodys_to_use_and_nobodys_to_change(face: Face) -> None:
    (shared,) = (await face.get("/networks", who="bob"))["networks"]
    assert (shared["name"], shared["shared"]) == ("private", True)
    path = f"/networks/{shared['id']}"
    assert (await face.call("PUT", path, {"network": {"name": "x"}})).fault == (403, "PolicyNotAuthorized")
    assert (await face.call("DELETE", path)).fault == (403, "PolicyNotAuthorized")
    answer = await face.call(
        "POST", "/subnets", {"subnet": {"network_id": shared["id"], "cidr": "10.0.0.0/24", "ip_version": 4}}
    )
    assert answer.fault == (403, "PolicyNotAuthorized")
    (subnet,) = (await face.get("/subnets"))["subnets"]
    assert (await face.call("DELETE", f"/subnets/{subnet['id']}")).fault == (403, "PolicyNotAuthorized")
    port = await face.make("port", network_id=shared["id"])
    assert port["tenant_id"] == "alpha"
    for values in (
        {"fixed_ips": [{"ip_address": "10.11.7.7"}]},
        {"mac_address": "fa:16:3e:00:00:07"},
        {"port_security_enabled": False},
        {"device_owner": "network:dhcp"},
        {"binding:host_id": "one"},
    ):
        answer = await face.call("POST", "/ports", {"port": {"network_id": shared["id"], **values}})
        assert answer.fault == (403, "PolicyNotAuthorized"), values
    assert (await face.call("GET", f"/ports/{port['id']}", who="bob")).status == 404
    answer = await face.call("PUT", path, {"network": {"shared": False}}, who="admin")
    assert answer.fault == (409, "InvalidSharedSetting")


@pytest.mark.parametrize(
    ("path", "body", "fault"),
    [
        ("/networks", b"nonsense", "HTTPBadRequest"),
        ("/networks", b"\xff\xfe", "HTTPBadRequest"),
        ("/networks", [], "HTTPBadRequest"),
        ("/networks", {}, "HTTPBadRequest"),
        ("/networks", {"network": None}, "HTTPBadRequest"),
        ("/networks", {"network": []}, "HTTPBadRequest"),
        ("/networks", {"networks": []}, "HTTPBadRequest"),
        ("/networks", {"networks": [1]}, "HTTPBadRequest"),
        ("/networks", {"network": {"name": "x" * 256}}, "HTTPBadRequest"),
        ("/networks", {"network": {"name": 7}}, "HTTPBadRequest"),
        ("/networks", {"network": {"name": "a\x00b"}}, "HTTPBadRequest"),
        ("/networks", {"network": {"color": "blue"}}, "HTTPBadRequest"),
        ("/networks", {"network": {"id": NOWHERE}}, "HTTPBadRequest"),
        ("/networks", {"network": {"mtu": -1}}, "HTTPBadRequest"),
        ("/networks", {"network": {"mtu": "many"}}, "HTTPBadRequest"),
        ("/networks", {"network": {"mtu": 9000}}, "InvalidInput"),
        ("/networks", {"network": {"admin_state_up": "perhaps"}}, "HTTPBadRequest"),
        (
            "/networks",
            {"network": {"name": "x", "tenant_id": "alpha", "project_id": "beta"}},
            "HTTPBadRequest",
        ),
        ("/subnets", {"subnet": {}}, "HTTPBadRequest"),
        ("/subnets", {"subnet": {"cidr": "10.0.0.0/24", "ip_version": 6}}, "InvalidInput"),
        ("/subnets", {"subnet": {"cidr": "10.0.0.0/24", "ip_version": 5}}, "InvalidInput"),
        ("/subnets", {"subnet": {"cidr": "10.0.0.0/33", "ip_version": 4}}, "HTTPBadRequest"),
        ("/subnets", {"subnet": {"cidr": 7, "ip_version": 4}}, "HTTPBadRequest"),
        ("/subnets", {"subnet": {"cidr": "0.0.0.0/0", "ip_version": 4}}, "InvalidInput"),
        ("/subnets", {"subnet": {"cidr": "127.0.0.0/24", "ip_version": 4}}, "InvalidInput"),
        ("/subnets", {"subnet": {"cidr": "224.0.0.0/24", "ip_version": 4}}, "InvalidInput"),
        ("/subnets", {"subnet": {"cidr": "10.0.0.0/31", "ip_version": 4}}, "InvalidInput"),
        ("/subnets", {"subnet": {"cidr": "10.5.0.128/25", "ip_version": 4}}, "InvalidInput"),
        ("/subnets", {"subnet": {"gateway_ip": "fd00::1"}}, "InvalidInput"),
        ("/subnets", {"subnet": {"gateway_ip": "10.0.0.255"}}, "InvalidInput"),
        ("/subnets", {"subnet": {"gateway_ip": "nonsense"}}, "HTTPBadRequest"),
        ("/subnets", {"subnet": {"dns_nameservers": "9.9.9.9"}}, "HTTPBadRequest"),
        ("/subnets", {"subnet": {"dns_nameservers": ["a", "b"]}}, "HTTPBadRequest"),
        ("/subnets", {"subnet": {"dns_nameservers": ["9.9.9.9"] * 2}}, "HTTPBadRequest"),
        ("/subnets", {"subnet": {"host_routes": [{"destination": "10.0.0.0/8"}]}}, "HTTPBadRequest"),
        (
            "/subnets",
            {"subnet": {"host_routes": [{"destination": "fd00::/8", "nexthop": "10.0.0.1"}]}},
            "InvalidInput",
        ),
        ("/subnets", {"subnet": {"allocation_pools": [{"start": "10.0.0.5"}]}}, "HTTPBadRequest"),
        (
            "/subnets",
            {"subnet": {"allocation_pools": [{"start": "10.0.0.9", "end": "10.0.0.5"}]}},
            "InvalidInput",
        ),
        ("/subnets", {"subnet": {"ipv6_ra_mode": "slaac"}}, "InvalidInput"),
        (
            "/subnets",
            {"subnet": {"cidr": "fd00::/80", "ip_version": 6, "ipv6_ra_mode": "slaac"}},
            "InvalidInput",
        ),
        ("/subnets", {"subnet": {"subnetpool_id": NOWHERE}}, "HTTPBadRequest"),
        ("/ports", {"port": {"fixed_ips": [{"ip_address": "10.9.9.9"}]}}, "InvalidIpForNetwork"),
        ("/ports", {"port": {"fixed_ips": [{"ip_address": "10.5.0.0"}]}}, "InvalidIpForNetwork"),
        ("/ports", {"port": {"fixed_ips": [{"subnet_id": NOWHERE}]}}, "InvalidInput"),
        ("/ports", {"port": {"fixed_ips": [{}]}}, "HTTPBadRequest"),
        ("/ports", {"port": {"fixed_ips": "10.5.0.7"}}, "HTTPBadRequest"),
        ("/ports", {"port": {"fixed_ips": [{"ip_address": "10.5.0.7"}] * 2}}, "HTTPBadRequest"),
        ("/ports", {"port": {"mac_address": "01:00:00:00:00:00"}}, "HTTPBadRequest"),
        ("/ports", {"port": {"mac_address": "nonsense"}}, "HTTPBadRequest"),
        ("/ports", {"port": {"security_groups": ["default"]}}, "HTTPBadRequest"),
        ("/ports", {"port": {"binding:vnic_type": "strange"}}, "HTTPBadRequest"),
        ("/ports", {"port": {"binding:vif_type": "ovs"}}, "HTTPBadRequest"),
        (
            "/ports",
            {"port": {"allowed_address_pairs": [{"mac_address": "fa:16:3e:00:00:01"}]}},
            "HTTPBadRequest",
        ),
        (
            "/ports",
            {"port": {"port_security_enabled": False, "security_groups": [NOWHERE]}},
            "PortSecurityAndIPRequiredForSecurityGroups",
        ),
        ("/security-groups", {"security_group": {"name": ["x"]}}, "HTTPBadRequest"),
        ("/security-groups", {"security_group": {"name": "x", "stateful": False}}, "HTTPBadRequest"),
        ("/security-group-rules", {"security_group_rule": {"direction": "sideways"}}, "HTTPBadRequest"),
        (
            "/security-group-rules",
            {"security_group_rule": {"protocol": "tpc"}},
            "SecurityGroupRuleInvalidProtocol",
        ),
        ("/security-group-rules", {"security_group_rule": {"port_range_min": "x"}}, "HTTPBadRequest"),
        ("/security-group-rules", {"security_group_rule": {"remote_ip_prefix": "x"}}, "HTTPBadRequest"),
        (
            "/security-group-rules",
            {"security_group_rule": {"ethertype": 4}},
            "SecurityGroupRuleInvalidEtherType",
        ),
    ],
)
async def test_bad_input_is_refused_by_name(face: Face, path: str, body: Any, fault: str) -> None:
    """The bodies are filled up with what they would need to be right."""
    body = copy.deepcopy(body)  # pytest hands the same one to every database
    network = await face.make("network", name="n")
    await face.make("subnet", network_id=network["id"], cidr="10.5.0.0/24", ip_version=4)
    if path == "/subnets" and body["subnet"]:
        body["subnet"] = {
            "network_id": network["id"],
            "cidr": "10.0.0.0/24",
            "ip_version": 4,
            **body["subnet"],
        }
    if path == "/ports":
        body["port"]["network_id"] = network["id"]
    if path == "/security-group-rules":
        group = await face.make("security_group", name="g")
        body["security_group_rule"] = {
            "security_group_id": group["id"],
            "direction": "ingress",
            **body["security_group_rule"],
        }
    raw = body if isinstance(body, bytes) else None
    answer = await face.call("POST", path, None if raw else body, data=raw)
    assert answer.fault == (400, fault), answer.text


async def test_bad_updates_are_refused(face: Face) -> None:
    network = await face.make("network", name="n")
    subnet = await face.make("subnet", network_id=network["id"], cidr="10.5.0.0/24", ip_version=4)
    port = await face.make("port", network_id=network["id"])
    cases: list[tuple[str, dict[str, Any], int, str]] = [
        (f"/networks/{network['id']}", {"network": {"project_id": "beta"}}, 400, "HTTPBadRequest"),
        (f"/networks/{network['id']}", {"network": {"shared": True}}, 403, "PolicyNotAuthorized"),
        (
            f"/networks/{network['id']}",
            {"network": {"provider:segmentation_id": 7}},
            403,
            "PolicyNotAuthorized",
        ),
        (f"/networks/{network['id']}", {"network": {"mtu": 9000}}, 400, "InvalidInput"),
        (f"/subnets/{subnet['id']}", {"subnet": {"cidr": "10.6.0.0/24"}}, 400, "HTTPBadRequest"),
        (
            f"/subnets/{subnet['id']}",
            {"subnet": {"gateway_ip": "10.5.0.9"}},
            409,
            "GatewayConflictWithAllocationPools",
        ),
        (
            f"/subnets/{subnet['id']}",
            {"subnet": {"allocation_pools": [{"start": "10.6.0.1", "end": "10.6.0.9"}]}},
            409,
            "OutOfBoundsAllocationPool",
        ),
        (f"/ports/{port['id']}", {"port": {"network_id": NOWHERE}}, 400, "HTTPBadRequest"),
        (f"/ports/{port['id']}", {"port": {"status": "ACTIVE"}}, 400, "HTTPBadRequest"),
        (f"/ports/{port['id']}", {"port": {"binding:host_id": "x"}}, 403, "PolicyNotAuthorized"),
        (f"/ports/{port['id']}", {"port": {"port_security_enabled": None}}, 400, "HTTPBadRequest"),
        (
            f"/ports/{port['id']}",
            {"port": {"port_security_enabled": False}},
            409,
            "PortSecurityPortHasSecurityGroup",
        ),
        (f"/ports/{NOWHERE}", {"port": {"name": "x"}}, 404, "PortNotFound"),
        (f"/networks/{'x' * 300}", {"network": {"name": "x"}}, 404, "NetworkNotFound"),
    ]
    for path, body, status, kind in cases:
        assert (await face.call("PUT", path, body)).fault == (status, kind), body
    open_ = {"port": {"port_security_enabled": False, "security_groups": []}}
    assert (await face.call("PUT", f"/ports/{port['id']}", open_)).body["port"]["security_groups"] == []
    pairs = {"port": {"allowed_address_pairs": [{"ip_address": "10.5.0.200"}]}}
    assert (await face.call("PUT", f"/ports/{port['id']}", pairs)).fault == (
        409,
        "AddressPairAndPortSecurityRequired",
    )


async def test_addresses_and_macs_in_use_are_conflicts(face: Face) -> None:
    network = await face.make("network", name="n")
    await face.make("subnet", network_id=network["id"], cidr="10.5.0.0/29", ip_version=4)
    port = await face.make(
        "port",
        network_id=network["id"],
        mac_address="FA:16:3E:00:00:07",
        fixed_ips=[{"ip_address": "10.5.0.4"}],
    )
    assert port["mac_address"] == "fa:16:3e:00:00:07"
    body: dict[str, Any] = {"port": {"network_id": network["id"], "mac_address": port["mac_address"]}}
    assert (await face.call("POST", "/ports", body)).fault == (409, "MacAddressInUse")
    body = {"port": {"network_id": network["id"], "fixed_ips": port["fixed_ips"]}}
    assert (await face.call("POST", "/ports", body)).fault == (409, "IpAddressInUse")
    bulk = {"ports": [{"network_id": network["id"], "name": f"p{n}"} for n in range(4)]}
    assert (await face.call("POST", "/ports", bulk)).fault == (409, "IpAddressGenerationFailure")
    assert len((await face.get(f"/ports?network_id={network['id']}&name=p0"))["ports"]) == 0
    made = await face.call("POST", "/ports", {"ports": bulk["ports"][:3]})
    assert made.status == 201 and len(made.body["ports"]) == 3
    (dhcp,) = (await face.get("/ports?device_owner=network:dhcp"))["ports"]
    assert (await face.call("DELETE", f"/ports/{dhcp['id']}")).fault == (409, "ServicePortInUse")


async def test_admins_choose_the_vlan(face: Face) -> None:
    made = await face.make(
        "network",
        who="admin",
        name="v",
        **{"provider:network_type": "vlan", "provider:segmentation_id": 777, "router:external": True},
    )
    assert (made["provider:segmentation_id"], made["provider:network_type"]) == (777, "vlan")
    again = {"network": {"name": "w", "provider:segmentation_id": 777}}
    assert (await face.call("POST", "/networks", again, "admin")).fault == (409, "VlanIdInUse")
    assert (await face.call("POST", "/networks", again)).fault == (403, "PolicyNotAuthorized")
    for bad in ({"provider:network_type": "vxlan"}, {"provider:physical_network": "else"}):
        answer = await face.call("POST", "/networks", {"network": bad}, "admin")
        assert answer.fault == (400, "InvalidInput")
    answer = await face.call("POST", "/networks", {"network": {"provider:segmentation_id": 4095}}, "admin")
    assert answer.fault == (400, "HTTPBadRequest")
    (seen,) = (await face.get("/networks?router:external=true"))["networks"]
    assert seen["id"] == made["id"] and "provider:segmentation_id" not in seen


async def test_security_groups_and_rules(face: Face) -> None:
    (default,) = (await face.get("/security-groups"))["security_groups"]
    assert default["name"] == "default" and len(default["security_group_rules"]) == 4
    assert len((await face.get("/security-group-rules"))["security_group_rules"]) == 4
    group = await face.make("security_group", name="web")
    assert {rule["direction"] for rule in group["security_group_rules"]} == {"egress"}
    ssh = {"security_group_id": group["id"], "direction": "ingress", "protocol": "TCP"}
    rule = await face.make("security_group_rule", **ssh, port_range_min="22", port_range_max=22)
    assert (rule["protocol"], rule["port_range_min"], rule["ethertype"]) == ("tcp", 22, "IPv4")
    same = {"security_group_rule": {**ssh, "protocol": "6", "port_range_min": 22, "port_range_max": 22}}
    answer = await face.call("POST", "/security-group-rules", same)
    assert answer.fault == (409, "SecurityGroupRuleExists") and rule["id"] in answer.text
    for body in (
        {"security_group_id": NOWHERE, "direction": "ingress"},
        {"security_group_id": group["id"], "direction": "ingress", "remote_group_id": NOWHERE},
    ):
        answer = await face.call("POST", "/security-group-rules", {"security_group_rule": body})
        assert answer.fault == (404, "SecurityGroupNotFound")
    assert (await face.call("PUT", f"/security-group-rules/{rule['id']}", {})).status == 405
    renamed = await face.call("PUT", f"/security-groups/{group['id']}", {"security_group": {"name": "www"}})
    assert renamed.body["security_group"]["name"] == "www"
    assert len(renamed.body["security_group"]["security_group_rules"]) == 3
    name = {"security_group": {"name": "default"}}
    assert (await face.call("POST", "/security-groups", name)).fault == (
        409,
        "SecurityGroupDefaultAlreadyExists",
    )
    other = {"security_group": {"name": "other"}}
    answer = await face.call("PUT", f"/security-groups/{default['id']}", other)
    assert answer.fault == (409, "SecurityGroupCannotUpdateDefault")
    answer = await face.call("DELETE", f"/security-groups/{default['id']}")
    assert answer.fault == (409, "SecurityGroupCannotRemoveDefault")
    network = await face.make("network", name="n")
    port = await face.make("port", network_id=network["id"], security_groups=[group["id"]])
    assert (await face.call("DELETE", f"/security-groups/{group['id']}")).fault == (409, "SecurityGroupInUse")
    assert (await face.call("DELETE", f"/ports/{port['id']}")).status == 204
    assert (await face.call("DELETE", f"/security-group-rules/{rule['id']}")).status == 204
    assert (await face.call("DELETE", f"/security-groups/{group['id']}")).status == 204
    assert (await face.call("DELETE", f"/security-groups/{default['id']}", who="admin")).status == 204
    (again,) = (await face.get("/security-groups?project_id=alpha&name=default", who="admin"))[
        "security_groups"
    ]
    assert again["id"] != default["id"]


async def test_quotas_are_shown_set_and_enforced(face: Face) -> None:
    shown = (await face.get("/quotas/alpha"))["quota"]
    assert shown == {
        "network": 100,
        "subnet": 100,
        "port": 500,
        "security_group": 10,
        "security_group_rule": 100,
    }
    body = {"quota": {"network": 1, "port": 1, "subnet": 1, "security_group": 2, "security_group_rule": 7}}
    assert (await face.call("PUT", "/quotas/alpha", body)).fault == (403, "PolicyNotAuthorized")
    assert (await face.call("GET", "/quotas/beta")).fault == (403, "PolicyNotAuthorized")
    for bad in (
        {"quota": {"network": -2}},
        {"quota": {"moon": 1}},
        {"quota": []},
        {},
        {"quota": {"port": "x"}},
    ):
        assert (await face.call("PUT", "/quotas/alpha", bad, "admin")).fault == (400, "HTTPBadRequest")
    assert (await face.call("PUT", "/quotas/alpha", body, "admin")).body["quota"] == body["quota"]
    network = await face.make("network", name="n")
    subnet = {"network_id": network["id"], "ip_version": 4}
    await face.make("subnet", **subnet, cidr="10.0.0.0/24")
    await face.make("port", network_id=network["id"])
    group = await face.make("security_group", name="g")
    rule = {"security_group_id": group["id"], "direction": "ingress", "protocol": "tcp"}
    await face.make("security_group_rule", **rule)
    for path, more in (
        ("/networks", {"network": {"name": "m"}}),
        ("/subnets", {"subnet": {**subnet, "cidr": "10.1.0.0/24"}}),
        ("/ports", {"port": {"network_id": network["id"]}}),
        ("/security-groups", {"security_group": {"name": "h"}}),
        ("/security-group-rules", {"security_group_rule": {**rule, "protocol": "udp"}}),
    ):
        answer = await face.call("POST", path, more)
        assert answer.fault == (409, "OverQuota"), answer.text
    details = (await face.get("/quotas/alpha/details"))["quota"]
    assert details["port"] == {"limit": 1, "used": 1, "reserved": 0}
    assert details["security_group_rule"]["used"] == 7
    assert [each["tenant_id"] for each in (await face.get("/quotas", who="admin"))["quotas"]] == ["alpha"]
    assert (await face.get("/quotas/alpha/default"))["quota"]["network"] == 100
    assert (await face.call("DELETE", "/quotas/alpha", who="admin")).status == 204
    assert (await face.call("DELETE", "/quotas/alpha", who="admin")).status == 404
    await face.make("network", name="m")


async def test_deleting_a_servers_port_is_allowed_and_told(face: Face) -> None:
    network = await face.make("network", name="n")
    await face.make("subnet", network_id=network["id"], cidr="10.0.0.0/24", ip_version=4)
    vif = await face.boot("i1", network["id"])
    assert (await face.call("GET", f"/ports/{vif.port_id}/bindings")).fault == (403, "PolicyNotAuthorized")
    (binding,) = (await face.get(f"/ports/{vif.port_id}/bindings", who="nova"))["bindings"]
    assert (binding["host"], binding["vif_type"], binding["status"]) == ("one", "ovs", "ACTIVE")
    seen = (await face.get(f"/ports/{vif.port_id}", who="nova"))["port"]
    assert seen["binding:vif_details"]["bound_drivers"] == {"0": "openvswitch"}
    assert seen["device_owner"] == "compute:nova"
    assert (await face.call("DELETE", f"/ports/{vif.port_id}")).status == 204
    assert face.events == [("i1", "network-vif-deleted", vif.port_id, "completed")]
