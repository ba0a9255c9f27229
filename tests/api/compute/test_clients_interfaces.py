"""Interfaces of servers by the openstack command and openstacksdk, unmodified."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kilonova.testing.embedded import server, settled
from tests.api.compute.test_clients_servers import IMAGE, JSON
from tests.api.served import MEMBER, PATIENCE, Served

BOOT = ("--image", IMAGE, "--flavor", "m1.nano", "--network", "private", "--wait")


def ports_of(served: Served, uuid: str) -> list[str]:
    """Once nothing is done to the server."""
    served.run(settled(served.cloud, uuid, PATIENCE))
    listed = served.openstack("port", "list", "--server", uuid, *JSON, cloud=MEMBER)
    found = served.run(server(served.cloud, uuid))
    assert {each["ID"] for each in listed} == {vif.port_id for vif in found.vifs}
    return [vif.port_id for vif in found.vifs]


@pytest.mark.slow
@pytest.mark.capability("API-48", "API-49")
def test_command_line(served: Served) -> None:
    def mine(*words: str) -> Any:
        return served.openstack(*words, cloud=MEMBER)

    uuid = mine("server", "create", *BOOT, "plugs", *JSON)["id"]
    (first,) = ports_of(served, uuid)
    mine("network", "create", "second")
    mine("subnet", "create", "--network", "second", "--subnet-range", "10.99.0.0/24", "second")
    port = mine("port", "create", "--network", "second", "mine", *JSON)["id"]

    mine("server", "add", "port", "plugs", "mine")
    assert ports_of(served, uuid) == [first, port]
    mine("server", "remove", "port", "plugs", "mine")
    assert ports_of(served, uuid) == [first]
    assert mine("port", "show", "mine", *JSON)["device_id"] == ""

    mine("server", "add", "network", "plugs", "second", "--tag", "nic")
    _, added = ports_of(served, uuid)
    assert served.run(server(served.cloud, uuid)).vifs[1].tag == "nic"
    mine("server", "remove", "network", "plugs", "second")
    assert ports_of(served, uuid) == [first]
    assert added not in json.dumps(mine("port", "list", *JSON)), "it was made for the server"

    words = ["--fixed-ip-address", "10.99.0.42", "plugs", "second"]
    made = mine("server", "add", "fixed", "ip", *words, *JSON)
    assert [each["ip_address"] for each in made["Fixed IPs"]] == ["10.99.0.42"]
    assert ports_of(served, uuid) == [first, made["Port ID"]]
    old = ("--os-compute-api-version", "2.43")  # the last that has it, as in Nova
    mine("server", "remove", "fixed", "ip", "plugs", "10.99.0.42", *old)
    assert served.run(settled(served.cloud, uuid, PATIENCE)).vifs[1].fixed_ips == ()
    mine("server", "remove", "port", "plugs", made["Port ID"])
    assert ports_of(served, uuid) == [first]
    mine("server", "delete", "--wait", "plugs")
    mine("port", "delete", "mine")
    mine("network", "delete", "second")


def test_openstacksdk(served: Served) -> None:
    with served.sdk(MEMBER) as connection:
        compute = connection.compute
        network = connection.network.find_network("private")
        made = compute.create_server(
            name="sdk",
            image_id=connection.image.find_image(IMAGE).id,
            flavor_id=compute.find_flavor("m1.nano").id,
            networks=[{"uuid": network.id}],
        )
        compute.wait_for_server(made)
        added = compute.create_server_interface(made, net_id=network.id)
        assert added.net_id == network.id
        assert {each.port_id for each in compute.server_interfaces(made)} > {added.port_id}
        assert compute.get_server_interface(added.port_id, server=made).mac_addr == added.mac_addr
        compute.delete_server_interface(added.port_id, server=made)
        served.run(settled(served.cloud, made.id, PATIENCE))
        assert len(list(compute.server_interfaces(made))) == 1
        compute.delete_server(made)
        compute.wait_for_delete(made, interval=0.1)
