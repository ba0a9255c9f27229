"""Servers as records, for tests of what they are told."""

from __future__ import annotations

import base64
from typing import Any

from kilonova.model.flavor import Flavor
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.port import FixedIp, SubnetInfo, Vif

UUID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
KEY = "ssh-ed25519 AAAAC3Nza alice@home"

V4 = SubnetInfo(
    id="s4",
    cidr="10.0.0.0/24",
    gateway="10.0.0.1",
    dns=("8.8.8.8", "1.1.1.1"),
    routes=(("192.168.0.0/16", "10.0.0.9"),),
)
V4_STATIC = SubnetInfo(**{**{f: getattr(V4, f) for f in V4.__struct_fields__}, "id": "s4s", "dhcp": False})
V6_STATIC = SubnetInfo(
    id="s6", cidr="fd00:1::/64", gateway="fd00:1::1", version=6, dns=("2001:db8::1",), dhcp=False
)


def vif(**values: Any) -> Vif:
    return Vif(
        **{
            "port_id": "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
            "mac": "fa:16:3e:00:00:01",
            "network_id": "net-1",
            "network_name": "private",
            "fixed_ips": (FixedIp(subnet_id="s4", address="10.0.0.5"),),
            "subnets": (V4,),
            "mtu": 1450,
            **values,
        }
    )


def server(**values: Any) -> Instance:
    return Instance(
        **{
            "id": 0x2A,
            "uuid": UUID,
            "project_id": "p1",
            "user_id": "u1",
            "reservation_id": "r-abcdefgh",
            "display_name": "My Server",
            "hostname": "my-server",
            "vm_state": "active",
            "flavor": Flavor(id=1, flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1),
            "image": ImageMeta(id="deadbeef-0000-4000-8000-000000000000"),
            "availability_zone": "nova",
            "key_name": "mykey",
            "key_data": KEY,
            "user_data": base64.b64encode(b"#!/bin/sh\n\xff").decode(),
            "metadata": {"role": "web"},
            "security_groups": ("default", "web"),
            "vifs": (vif(),),
            **values,
        }
    )
