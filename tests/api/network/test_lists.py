"""Lists: filters, fields, sorting, paging, tags; and what clients look at besides."""

from __future__ import annotations

import pytest

from tests.api.network.conftest import Face


async def test_filters_on_attributes_also_repeated_and_empty(face: Face) -> None:
    for n in range(4):
        await face.make("network", name=f"n{n % 3}", description="even" if n % 2 == 0 else "")

    async def names(query: str) -> list[str]:
        return sorted(each["name"] for each in (await face.get(f"/networks?{query}"))["networks"])

    assert await names("name=n0") == ["n0", "n0"]
    assert await names("name=n0&name=n1") == ["n0", "n0", "n1"]
    assert await names("name=n0&description=even") == ["n0"]
    assert await names("description=&shared=false") == ["n0", "n1"]
    assert await names("shared=True") == ["private"]
    assert await names("tenant_id=alpha&name=n2") == ["n2"]
    assert await names("mtu=1500&name=n1") == ["n1"]
    assert await names("router:external=true") == []
    for bad in ("color=blue", "shared=perhaps", "mtu=x", "mtu=" + "9" * 40, "limit=-1", "limit=x"):
        assert (await face.call("GET", f"/networks?{bad}")).fault == (400, "HTTPBadRequest"), bad
    answer = await face.call("GET", "/networks?provider:segmentation_id=1")
    assert answer.fault == (403, "PolicyNotAuthorized")
    (one,) = (await face.get("/networks?provider:segmentation_id=1", who="admin"))["networks"]
    assert one["name"] == "private"


async def test_ports_by_device_address_and_group(face: Face) -> None:
    network = await face.make("network", name="n")
    subnet = await face.make("subnet", network_id=network["id"], cidr="10.0.0.0/24", ip_version=4)
    vif = await face.boot("i1", network["id"])
    other = await face.boot("i2", network["id"])
    group = (await face.get("/security-groups"))["security_groups"][0]["id"]

    async def ids(query: str, who: str = "alice") -> set[str]:
        return {each["id"] for each in (await face.get(f"/ports?{query}", who=who))["ports"]}

    mine, theirs = vif.port_id, other.port_id
    assert await ids("device_id=i1") == {mine}
    assert await ids("device_id=i1&device_id=i2") == {mine, theirs}
    address = vif.fixed_ips[0].address
    assert await ids(f"fixed_ips=ip_address={address}") == {mine}
    assert await ids(f"fixed_ips=ip_address={address}&fixed_ips=subnet_id={subnet['id']}") == {mine}
    assert await ids(f"fixed_ips=subnet_id={subnet['id']}&device_owner=compute:nova") == {mine, theirs}
    assert await ids("fixed_ips=ip_address_substr=0.0.3") == {mine}
    assert await ids("fixed_ips=ip_address_substr=%25") == set()
    assert await ids(f"security_groups={group}") == {mine, theirs}
    assert await ids("binding:host_id=one", who="admin") == {mine, theirs}
    assert await ids("mac_address=" + vif.mac) == {mine}
    for bad in ("fixed_ips=10.0.0.3", "fixed_ips=color=blue"):
        assert (await face.call("GET", f"/ports?{bad}")).fault == (400, "HTTPBadRequest")
    (view,) = (await face.get("/ports?device_id=i1&fields=id&fields=fixed_ips"))["ports"]
    assert set(view) == {"id", "fixed_ips"}
    shown = (await face.get(f"/ports/{mine}?fields=mac_address"))["port"]
    assert shown == {"mac_address": vif.mac}


@pytest.mark.parametrize("key", ["sort_key=name", "sort_key=description&sort_dir=desc", ""])
async def test_pages_put_together_are_the_list_in_both_directions(face: Face, key: str) -> None:
    bulk = [{"name": f"n{n % 3}", "description": f"d{n % 2}"} for n in range(7)]
    made = await face.call("POST", "/networks", {"networks": bulk})
    assert made.status == 201
    everything = [each["id"] for each in (await face.get(f"/networks?{key}"))["networks"]]
    assert len(everything) == 8
    path, pages = f"/networks?limit=3&{key}", []
    while path:
        body = await face.get(path)
        pages.append([each["id"] for each in body["networks"]])
        following = {each["rel"]: each["href"] for each in body.get("networks_links", [])}
        last = path
        path = following.get("next", "").removeprefix(face.url)
    assert [each for page in pages for each in page] == everything
    body = await face.get(last)
    previous = {each["rel"]: each["href"] for each in body["networks_links"]}["previous"]
    back = await face.get(previous.removeprefix(face.url))
    assert [each["id"] for each in back["networks"]] == pages[-2]


async def test_sorting_by_a_column_that_may_be_empty(face: Face) -> None:
    network = await face.make("network", name="n")
    for n, gateway in enumerate((None, "10.1.0.1", None)):
        await face.make(
            "subnet", network_id=network["id"], cidr=f"10.{n}.0.0/24", ip_version=4, gateway_ip=gateway
        )
    query = f"/subnets?network_id={network['id']}&sort_key=gateway_ip&sort_dir=desc&limit=1"
    found, marker = [], ""
    for _ in range(3):
        (one,) = (await face.get(query + marker))["subnets"]
        found.append(one["gateway_ip"])
        marker = f"&marker={one['id']}"
    assert found == ["10.1.0.1", None, None]
    assert (await face.get(query + marker))["subnets"] == []


@pytest.mark.parametrize(
    "query",
    [
        "sort_key=color",
        "sort_key=name&sort_dir=up",
        "sort_key=name&sort_dir=asc&sort_dir=desc",
        "marker=nonsense&limit=2",
        "page_reverse=perhaps",
        "name=a%00b",
    ],
)
async def test_bad_paging_is_refused(face: Face, query: str) -> None:
    assert (await face.call("GET", f"/networks?{query}")).fault == (400, "HTTPBadRequest")


async def test_tags(face: Face) -> None:
    one = (await face.make("network", name="one"))["id"]
    two = (await face.make("network", name="two"))["id"]
    put = await face.call("PUT", f"/networks/{one}/tags", {"tags": ["red", "blue"]})
    assert put.body == {"tags": ["blue", "red"]}
    assert (await face.call("PUT", f"/networks/{two}/tags/red")).status == 201
    assert (await face.call("PUT", f"/networks/{two}/tags/red")).status == 201
    assert (await face.call("POST", f"/networks/{two}/tags", {"tags": ["red", "green"]})).body == {
        "tags": ["green", "red"]
    }
    assert (await face.get(f"/networks/{two}"))["network"]["tags"] == ["green", "red"]

    async def names(query: str) -> list[str]:
        found = (await face.get(f"/networks?shared=false&{query}"))["networks"]
        return sorted(each["name"] for each in found)

    assert await names("tags=red") == ["one", "two"]
    assert await names("tags=red,blue") == ["one"]
    assert await names("tags-any=blue,green") == ["one", "two"]
    assert await names("not-tags=red,blue") == ["two"]
    assert await names("not-tags-any=green") == ["one"]
    assert (await face.call("GET", f"/networks/{one}/tags/red")).status == 204
    assert (await face.call("DELETE", f"/networks/{one}/tags/red")).status == 204
    assert (await face.call("DELETE", f"/networks/{one}/tags/red")).fault == (404, "TagNotFound")
    assert (await face.call("GET", f"/networks/{one}/tags/red")).fault == (404, "TagNotFound")
    assert (await face.call("DELETE", f"/networks/{one}/tags")).status == 204
    assert await face.get(f"/networks/{one}/tags") == {"tags": []}
    for bad in (
        {},
        {"tags": "red"},
        {"tags": [1]},
        {"tags": ["x" * 256]},
        {"tags": ["a", "a"]},
        {"tags": ["a,b"]},
    ):
        assert (await face.call("PUT", f"/networks/{one}/tags", bad)).fault == (400, "HTTPBadRequest")
    (shared,) = (await face.get("/networks?shared=true"))["networks"]
    assert (await face.call("PUT", f"/networks/{shared['id']}/tags/x")).fault == (403, "PolicyNotAuthorized")


async def test_extensions_are_what_is_there(face: Face) -> None:
    aliases = {each["alias"] for each in (await face.get("/extensions"))["extensions"]}
    assert {
        "binding",
        "binding-extended",
        "security-group",
        "port-security",
        "provider",
        "quotas",
        "standard-attr-tag",
    } <= aliases
    assert not {"router", "trunk", "qos", "dns-integration"} & aliases
    assert (await face.get("/extensions/binding"))["extension"]["alias"] == "binding"
    assert (await face.call("GET", "/extensions/router")).fault == (404, "ExtensionNotFound")


async def test_what_is_not_offered_is_an_empty_list_that_takes_nothing(face: Face) -> None:
    assert await face.get("/floatingips?port_id=x") == {"floatingips": []}
    assert await face.get("/routers") == {"routers": []}
    assert await face.get("/qos/policies") == {"policies": []}
    assert await face.get("/address-scopes") == {"address_scopes": []}
    answer = await face.call("POST", "/floatingips", {"floatingip": {}})
    assert answer.fault == (404, "HTTPNotFound") and "floatingips" in answer.text
    assert (await face.call("GET", "/routers/x")).fault == (404, "HTTPNotFound")


async def test_zones_agents_and_availability(face: Face) -> None:
    zones = (await face.get("/availability_zones"))["availability_zones"]
    assert zones == [{"name": "nova", "resource": "network", "state": "available"}]
    assert await face.get("/agents", who="admin") == {"agents": []}
    (found,) = (await face.get("/network-ip-availabilities", who="admin"))["network_ip_availabilities"]
    assert (found["network_name"], found["total_ips"], found["used_ips"]) == ("private", 65533, 1)
    await face.boot("i1", found["network_id"])
    path = f"/network-ip-availabilities/{found['network_id']}"
    one = (await face.get(path, who="admin"))["network_ip_availability"]
    assert (one["used_ips"], one["subnet_ip_availability"][0]["used_ips"]) == (2, 2)
    for hidden in ("/agents", "/network-ip-availabilities", path):
        assert (await face.call("GET", hidden)).fault == (403, "PolicyNotAuthorized")
    assert (await face.call("GET", "/network-ip-availabilities/x", who="admin")).fault == (
        404,
        "NetworkNotFound",
    )


async def test_the_projects_own_network_is_made_when_asked_for(face: Face) -> None:
    dry = await face.get("/auto-allocated-topology/alpha?fields=dry-run")
    assert dry["auto_allocated_topology"]["id"] == "dry-run=pass"
    assert len((await face.get("/networks?tenant_id=alpha"))["networks"]) == 0
    made = (await face.get("/auto-allocated-topology/alpha"))["auto_allocated_topology"]
    assert (await face.get("/auto-allocated-topology/alpha"))["auto_allocated_topology"] == made
    assert (await face.get(f"/networks/{made['id']}"))["network"]["name"] == "auto_allocated_network"
    assert (await face.call("GET", "/auto-allocated-topology/beta")).fault == (403, "PolicyNotAuthorized")
    assert (await face.call("DELETE", "/auto-allocated-topology/alpha")).status == 204
    assert (await face.call("DELETE", "/auto-allocated-topology/alpha")).status == 404


async def test_a_caller_without_a_project_sees_only_what_is_shared(face: Face) -> None:
    await face.make("network", name="n")
    assert [each["name"] for each in (await face.get("/networks", who="lost"))["networks"]] == ["private"]
    assert (await face.get("/ports", who="lost"))["ports"] == []
    assert (await face.get("/security-groups", who="lost"))["security_groups"] == []
