"""The documents of each version, and the whole tree of a config drive."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from msgspec.structs import replace

from kilonova.errors import Failed
from kilonova.model.instance import ImageMeta
from kilonova.model.port import FixedIp, Vif
from kilonova.model.volume import Attachment, Connection
from kilonova.services.metadata.documents import Described, config_drive, meta_data, openstack_tree, user_data
from kilonova.services.metadata.network_data import network_data
from tests.unit.metadata.servers import KEY, UUID, V4, V4_STATIC, V6_STATIC, server, vif

VERSIONS = [
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    "2020-10-14",
    "latest",
]


def since(version: str) -> list[str]:
    return VERSIONS[VERSIONS.index(version) :]


def test_a_drive_has_every_path_of_a_nova_config_drive() -> None:
    tree = openstack_tree(server(), (vif(),))
    expected = {f"openstack/{v}/{name}" for v in VERSIONS for name in ("meta_data.json", "user_data")}
    for name, first in (
        ("vendor_data.json", "2013-10-17"),
        ("network_data.json", "2015-10-15"),
        ("vendor_data2.json", "2016-10-06"),
    ):
        expected |= {f"openstack/{v}/{name}" for v in since(first)}
    expected |= {
        f"ec2/{v}/{name}" for v in ("2009-04-04", "latest") for name in ("meta-data.json", "user-data")
    }
    assert set(tree) == expected


def test_without_user_data_there_is_no_file_of_it() -> None:
    tree = openstack_tree(server(user_data=None), ())
    assert not [path for path in tree if path.endswith(("user_data", "user-data"))]


def test_the_newest_meta_data_has_all_of_novas_fields() -> None:
    tree = openstack_tree(server(), (vif(),), dhcp_domain="novalocal", random_seed=b"seed")
    assert json.loads(tree["openstack/latest/meta_data.json"]) == {
        "uuid": UUID,
        "hostname": "my-server.novalocal",
        "name": "My Server",
        "launch_index": 0,
        "availability_zone": "nova",
        "meta": {"role": "web"},
        "public_keys": {"mykey": KEY},
        "keys": [{"name": "mykey", "type": "ssh", "data": KEY}],
        "random_seed": base64.b64encode(b"seed").decode(),
        "project_id": "p1",
        "devices": [],
        "dedicated_cpus": [],
    }
    assert tree["openstack/latest/user_data"] == b"#!/bin/sh\n\xff"
    assert json.loads(tree["openstack/latest/vendor_data.json"]) == {}
    assert json.loads(tree["openstack/latest/vendor_data2.json"]) == {"static": {}}


@pytest.mark.parametrize(
    ("field", "first"),
    [
        ("uuid", "2012-08-10"),
        ("public_keys", "2012-08-10"),
        ("keys", "2012-08-10"),
        ("random_seed", "2013-04-04"),
        ("project_id", "2015-10-15"),
        ("devices", "2016-06-30"),
        ("dedicated_cpus", "2020-10-14"),
    ],
)
def test_fields_appear_with_their_version(field: str, first: str) -> None:
    described = Described(instance=server(), vifs=(), random_seed=b"x")
    assert [v for v in VERSIONS if field in meta_data(described, v)] == since(first)


def test_what_is_not_there_is_not_said() -> None:
    bare = server(metadata={}, key_name=None, key_data=None, availability_zone=None, hostname="h")
    found = meta_data(Described(instance=bare, vifs=(), availability_zone="az1"), "latest")
    assert not {"meta", "files", "admin_pass", "public_keys", "keys", "random_seed"} & set(found)
    assert (found["availability_zone"], found["hostname"]) == ("az1", "h")


def test_a_certificate_is_a_key_of_type_x509() -> None:
    certificate = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----"
    found = meta_data(Described(instance=server(key_data=certificate), vifs=()), "latest")
    assert found["keys"] == [{"name": "mykey", "type": "x509", "data": certificate}]


def test_injected_files_and_the_password_are_on_the_drive() -> None:
    files = (("/etc/motd", b"hello"), ("/root/x", b"\0\xff"))
    tree = openstack_tree(server(), (), files=files, password="s3cret", vendor_data={"a": 1})
    for version in VERSIONS:
        document = json.loads(tree[f"openstack/{version}/meta_data.json"])
        assert document["admin_pass"] == "s3cret"
        assert document["files"] == [
            {"content_path": "/content/0000", "path": "/etc/motd"},
            {"content_path": "/content/0001", "path": "/root/x"},
        ]
    assert tree["openstack/content/0000"] == b"hello"
    assert tree["openstack/content/0001"] == b"\0\xff"
    assert json.loads(tree["openstack/latest/vendor_data.json"]) == {"a": 1}
    assert json.loads(tree["openstack/latest/vendor_data2.json"]) == {"static": {"a": 1}}


def test_the_same_server_gives_the_same_drive() -> None:
    make = config_drive("novalocal")
    files = (("/a", b"b"),)
    assert make(server(), files) == make(server(), files)
    assert make(server(), files) == openstack_tree(server(), (vif(),), files=files, dhcp_domain="novalocal")


def test_tagged_ports_are_devices() -> None:
    vifs = (vif(tag="mgmt"), vif(mac="fa:16:3e:00:00:02"))
    found = meta_data(Described(instance=server(), vifs=vifs), "latest")
    assert found["devices"] == [
        {"type": "nic", "bus": "pci", "address": "none", "mac": "fa:16:3e:00:00:01", "tags": ["mgmt"]}
    ]


@pytest.mark.parametrize(("bus", "shown"), [(None, "pci"), ("scsi", "scsi"), ("ide", "ide"), ("x", "none")])
def test_tagged_volumes_are_devices(bus: str | None, shown: str) -> None:
    """Once the guest has them."""
    there = Attachment(
        id="b",
        volume_id="v",
        attachment_id="a",
        device="/dev/vdb",
        tag="data",
        connection=Connection(kind="file", path="/v"),
    )
    volumes = (there, replace(there, id="c", tag=None), replace(there, id="d", connection=None))
    image = ImageMeta(id="i", properties={} if bus is None else {"hw_disk_bus": bus})
    found = meta_data(Described(instance=server(volumes=volumes, image=image), vifs=()), "latest")
    assert found["devices"] == [
        {
            "type": "disk",
            "bus": shown,
            "address": "none",
            "serial": "v",
            "path": "/dev/vdb",
            "tags": ["data"],
        }
    ]


def test_pinned_processors_are_told_in_order() -> None:
    found = meta_data(Described(instance=server(), vifs=(), dedicated_cpus=(7, 3)), "latest")
    assert found["dedicated_cpus"] == [3, 7]


def test_a_network_with_dhcp() -> None:
    assert network_data((vif(),)) == {
        "links": [
            {
                "id": "tap0f1e2d3c-4b",
                "vif_id": "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
                "type": "ovs",
                "mtu": 1450,
                "ethernet_mac_address": "fa:16:3e:00:00:01",
            }
        ],
        "networks": [
            {"id": "network0", "link": "tap0f1e2d3c-4b", "network_id": "net-1", "type": "ipv4_dhcp"}
        ],
        "services": [{"type": "dns", "address": "8.8.8.8"}, {"type": "dns", "address": "1.1.1.1"}],
    }


def test_networks_without_dhcp_of_both_kinds() -> None:
    addresses = (
        FixedIp(subnet_id="s6", address="fd00:1::5", version=6),
        FixedIp(subnet_id="s4s", address="10.0.0.5"),
        FixedIp(subnet_id="s4s", address="10.0.0.6"),
    )
    found = network_data((vif(fixed_ips=addresses, subnets=(V4_STATIC, V6_STATIC)),))
    dns = [{"type": "dns", "address": "8.8.8.8"}, {"type": "dns", "address": "1.1.1.1"}]
    assert found["networks"] == [
        {
            "id": "network0",
            "link": "tap0f1e2d3c-4b",
            "network_id": "net-1",
            "type": "ipv4",
            "ip_address": "10.0.0.5",
            "netmask": "255.255.255.0",
            "routes": [
                {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"},
                {"network": "192.168.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.9"},
            ],
            "services": dns,
        },
        {
            "id": "network1",
            "link": "tap0f1e2d3c-4b",
            "network_id": "net-1",
            "type": "ipv6",
            "ip_address": "fd00:1::5",
            "netmask": "ffff:ffff:ffff:ffff::",
            "routes": [{"network": "::", "netmask": "::", "gateway": "fd00:1::1"}],
            "services": [{"type": "dns", "address": "2001:db8::1"}],
        },
    ]
    assert found["services"] == [*dns, {"type": "dns", "address": "2001:db8::1"}]
    assert len(found["links"]) == 1


def test_several_ports_are_counted_on_and_share_services() -> None:
    second = vif(port_id="11111111-2222", network_id="net-2", vif_type="unbound")
    found = network_data((vif(), second))
    assert [each["id"] for each in found["networks"]] == ["network0", "network1"]
    assert [each["type"] for each in found["links"]] == ["ovs", "phy"]
    assert len(found["services"]) == 2


@pytest.mark.parametrize(
    "port",
    [
        vif(fixed_ips=(), subnets=()),
        vif(fixed_ips=(), subnets=(V4,)),
        vif(fixed_ips=(FixedIp(subnet_id="gone", address="10.0.0.5"),)),
    ],
)
def test_a_port_without_an_address_is_left_out(port: Vif) -> None:
    assert network_data((port,)) == {"links": [], "networks": [], "services": []}


def test_a_subnet_without_a_gateway_has_no_default_route() -> None:
    lonely = {
        **{f: getattr(V4_STATIC, f) for f in V4_STATIC.__struct_fields__},
        "gateway": None,
        "routes": (),
    }
    port = vif(subnets=(type(V4)(**lonely),), fixed_ips=(FixedIp(subnet_id="s4s", address="10.0.0.5"),))
    assert network_data((port,))["networks"][0]["routes"] == []


def ec2(**values: Any) -> Any:
    tree = openstack_tree(server(**values), server(**values).vifs, dhcp_domain="novalocal")
    assert tree["ec2/latest/meta-data.json"] == tree["ec2/2009-04-04/meta-data.json"]
    return json.loads(tree["ec2/latest/meta-data.json"])


def test_ec2_metadata_of_the_drive() -> None:
    assert ec2() == {
        "ami-id": "ami-deadbeef",
        "ami-launch-index": 0,
        "ami-manifest-path": "FIXME",
        "instance-id": "i-0000002a",
        "hostname": "my-server.novalocal",
        "local-hostname": "my-server.novalocal",
        "public-hostname": "my-server.novalocal",
        "local-ipv4": "10.0.0.5",
        "public-ipv4": "",
        "reservation-id": "r-abcdefgh",
        "security-groups": ["default", "web"],
        "public-keys": {"0": {"openssh-key": KEY}},
        "instance-type": "m1.tiny",
        "block-device-mapping": {"ami": "vda", "root": "/dev/vda"},
        "placement": {"availability-zone": "nova"},
        "instance-action": "none",
    }


def test_ec2_metadata_of_a_bare_server() -> None:
    found = ec2(image=None, key_name=None, key_data=None, vifs=(), root_device_name="/dev/sda")
    assert (found["ami-id"], found["local-ipv4"]) == ("ami-00000000", "")
    assert found["block-device-mapping"] == {"ami": "sda", "root": "/dev/sda"}
    assert "public-keys" not in found


def test_user_data_are_decoded_and_bad_ones_are_a_fault_that_says_whose() -> None:
    assert user_data(server(user_data="")) == b""
    with pytest.raises(Failed, match=UUID):
        user_data(server(user_data="abc"))
