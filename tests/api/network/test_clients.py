"""The real clients: openstacksdk and the ``openstack`` command."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.network.conftest import Face


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # openstacksdk meets its own
async def test_openstacksdk_walks_through_everything(face: Face) -> None:
    def use(net: Any) -> None:
        from openstack import exceptions

        network = net.create_network(name="blue")
        subnet = net.create_subnet(
            network_id=network.id, ip_version=4, cidr="10.7.0.0/24", name="blue4", dns_nameservers=["9.9.9.9"]
        )
        port = net.create_port(network_id=network.id, name="p", fixed_ips=[{"subnet_id": subnet.id}])
        assert port.fixed_ips[0]["ip_address"] == "10.7.0.3"
        assert net.find_network("blue").id == network.id
        assert net.find_port("p").id == port.id
        assert [each.id for each in net.ports(fixed_ips="ip_address=10.7.0.3")] == [port.id]
        assert net.update_port(port, name="q").name == "q"
        assert net.update_network(network, description="sky").description == "sky"
        assert net.update_subnet(subnet, name="b").name == "b"
        assert net.set_tags(network, ["x"]).tags == ["x"]
        assert [each.id for each in net.networks(tags="x")] == [network.id]
        group = net.create_security_group(name="web")
        rule = net.create_security_group_rule(
            security_group_id=group.id,
            direction="ingress",
            protocol="tcp",
            port_range_min=80,
            port_range_max=80,
        )
        with pytest.raises(exceptions.ConflictException):
            net.create_security_group_rule(
                security_group_id=group.id,
                direction="ingress",
                protocol="tcp",
                port_range_min=80,
                port_range_max=80,
            )
        assert {each.id for each in net.security_group_rules(security_group_id=group.id)} >= {rule.id}
        assert list(net.ips(port_id=port.id)) == []
        assert list(net.networks(limit=1)) and len(list(net.networks(limit=1))) == 2
        assert "binding" in {each.alias for each in net.extensions()}
        with pytest.raises(exceptions.ConflictException):
            net.delete_network(network)
        made = net.create_ports([{"network_id": network.id}, {"network_id": network.id}])
        for each in (*made, port):
            net.delete_port(each, ignore_missing=False)
        net.delete_security_group_rule(rule, ignore_missing=False)
        net.delete_security_group(group, ignore_missing=False)
        net.delete_subnet(subnet, ignore_missing=False)
        net.delete_network(network, ignore_missing=False)
        with pytest.raises(exceptions.NotFoundException):
            net.get_network(network.id)

    await face.sdk(use)


async def test_the_openstack_command_walks_through_everything(face: Face) -> None:
    commands = [
        "network create blue --description sky -f json",
        "network list -f json",
        "network show blue -f json",
        "network set blue --name green --tag t1",
        "subnet create --network green --subnet-range 10.7.0.0/24 --dns-nameserver 9.9.9.9 sub -f json",
        "subnet set sub --no-dns-nameservers --dns-nameserver 1.1.1.1 --gateway 10.7.0.1",
        "subnet list --network green -f json",
        "subnet show sub -f json",
        "port create --network green --fixed-ip subnet=sub,ip-address=10.7.0.77 p1 -f json",
        "port list --network green -f json",
        "port list --fixed-ip ip-address=10.7.0.77 -f json",
        "port set p1 --name p2 --description d",
        "port show p2 -f json",
        "security group create web -f json",
        "security group rule create web --protocol tcp --dst-port 22:23 --remote-ip 10.0.0.0/8 -f json",
        "security group rule create web --protocol icmp --icmp-type 8 -f json",
        "security group rule create web --ethertype IPv6 --remote-group web -f json",
        "security group rule list web -f json",
        "security group list -f json",
        "security group set web --name www",
        "security group show www -f json",
        "port set p2 --security-group www",
        "port unset p2 --security-group www",
        "network delete green",
        "port delete p2",
        "security group delete www",
        "subnet delete sub",
        "network delete green",
        "network show green",
        "floating ip list -f json",
        "extension list --network -f json",
    ]
    results = dict(zip(commands, await face.cli(*commands), strict=False))
    may_fail = {"network delete green", "network show green"}
    for command, (code, output) in results.items():
        assert code == 0 or command in may_fail, (command, output)

    def of(start: str) -> Any:
        return next(output for command, (_, output) in results.items() if command.startswith(start))

    assert {each["Name"] for each in of("network list")} == {"private", "blue"}
    assert of("network show blue")["description"] == "sky"
    assert of("subnet show")["dns_nameservers"] == ["1.1.1.1"]
    assert of("port create")["fixed_ips"][0]["ip_address"] == "10.7.0.77"
    assert [each["Name"] for each in of("port list --fixed-ip")] == ["p1"]
    assert of("port show")["name"] == "p2"
    assert of("security group rule create web --protocol tcp")["port_range_max"] == 23
    assert len(of("security group rule list")) == 5
    assert "No Network found" in of("network show green")
    assert of("floating ip list") == []


async def test_the_openstack_command_for_administrators(face: Face) -> None:
    commands = [
        "network create --share --provider-network-type vlan --provider-segment 99 common -f json",
        "network list --provider-segment 99 -f json",
        "network agent list -f json",
        "ip availability list -f json",
        "ip availability show private -f json",
        "port list --host one -f json",
        "network set private --disable",
        "network show private -f json",
        "network delete common",
    ]
    results = await face.cli(*commands, who="admin")
    for command, (code, output) in zip(commands, results, strict=True):
        assert code == 0, (command, output)
    assert results[0][1]["provider:segmentation_id"] == 99
    assert [each["Name"] for each in results[1][1]] == ["common"]
    assert results[7][1]["admin_state_up"] is False
