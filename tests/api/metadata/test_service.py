"""The metadata service on a real port: guests are told apart by the address that they ask from."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import uvicorn

from kilonova.db.engine import DatabaseUnavailable
from kilonova.model.instance import Instance
from kilonova.services.metadata.api import MetadataSettings, app
from tests.unit.metadata.servers import KEY, UUID, server

GUEST, BARE, NOBODY, BROKEN = "127.0.0.5", "127.0.0.6", "127.0.0.7", "127.0.0.8"


class Network:
    """The servers of one network by address, and the service in front of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.servers: dict[str, Instance] = {
            GUEST: server(),
            BARE: server(user_data=None, key_name=None, key_data=None, metadata={}),
        }
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        service = app(
            self.find,
            "net-1",
            settings=MetadataSettings(dhcp_domain="novalocal", vendor_data={"v": 1}),
            store_password=self.store,
        )
        config = uvicorn.Config(
            service, lifespan="off", log_level="critical", loop="none", proxy_headers=False
        )
        self._server = uvicorn.Server(config)

    async def find(self, network_id: str, address: str) -> Instance | None:
        self.asked.append((network_id, address))
        if address == BROKEN:
            raise DatabaseUnavailable("gone")
        return self.servers.get(address)

    async def store(self, instance: Instance, password: str) -> None:
        kept = {f"password_{n}": password[n * 255 : (n + 1) * 255] for n in range(4)}
        changed = msgspec.structs.replace(instance, system_metadata=kept)
        self.servers = {at: changed if each is instance else each for at, each in self.servers.items()}

    def run(self) -> None:
        asyncio.run(self._server._serve([self._socket]))

    def stop(self) -> None:
        self._server.should_exit = True

    def ask(
        self, path: str, address: str = GUEST, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=20, source_address=(address, 0)
        )
        try:
            connection.request(method, path, body, {n.replace("_", "-"): v for n, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers.get_content_type()
        finally:
            connection.close()

    def lines(self, path: str, address: str = GUEST) -> list[str]:
        status, body, _ = self.ask(path, address)
        assert status == 200, body
        return body.decode().split("\n")

    def json(self, path: str, address: str = GUEST) -> Any:
        status, body, kind = self.ask(path, address)
        assert (status, kind) == (200, "application/json")
        return json.loads(body)


@pytest.fixture
def network() -> Iterator[Network]:
    found = Network()
    thread = threading.Thread(target=found.run)
    thread.start()
    yield found
    found.stop()
    thread.join(20)
    assert not thread.is_alive()


def test_versions_are_listed(network: Network) -> None:
    ec2, openstack = network.lines("/"), network.lines("/openstack")
    assert (ec2[0], ec2[-2:]) == ("1.0", ["2009-04-04", "latest"])
    assert (openstack[0], openstack[-2:]) == ("2012-08-10", ["2020-10-14", "latest"])
    assert network.lines("/openstack/") == openstack
    for version in openstack:
        for name in network.lines(f"/openstack/{version}"):
            assert network.ask(f"/openstack/{version}/{name}")[0] == 200
    assert network.asked[0] == ("net-1", GUEST)


def test_documents_are_listed_with_the_version_that_brought_them(network: Network) -> None:
    assert network.lines("/openstack/2012-08-10") == ["meta_data.json", "user_data"]
    assert network.lines("/openstack/2013-04-04/") == ["meta_data.json", "user_data", "password"]
    assert set(network.lines("/openstack/latest", BARE)) == {
        "meta_data.json",
        "vendor_data.json",
        "network_data.json",
        "vendor_data2.json",
        "password",
    }


def test_a_guest_hears_of_itself(network: Network) -> None:
    found = network.json("/openstack/latest/meta_data.json")
    assert (found["uuid"], found["hostname"], found["project_id"]) == (UUID, "my-server.novalocal", "p1")
    assert found["public_keys"] == {"mykey": KEY}
    assert "public_keys" not in network.json("/openstack/latest/meta_data.json", BARE)
    assert network.json("/openstack/latest/network_data.json")["networks"][0]["type"] == "ipv4_dhcp"
    assert network.json("/openstack/latest/vendor_data.json") == {"v": 1}
    assert network.json("/openstack/latest/vendor_data2.json") == {"static": {"v": 1}}
    assert network.ask("/openstack/latest/user_data") == (200, b"#!/bin/sh\n\xff", "application/octet-stream")
    assert "random_seed" not in network.json("/openstack/2012-08-10/meta_data.json")


def test_every_seed_is_another(network: Network) -> None:
    seeds = {network.json("/openstack/latest/meta_data.json")["random_seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_a_change_is_told_at_once(network: Network) -> None:
    assert network.json("/openstack/latest/meta_data.json")["name"] == "My Server"
    network.servers[GUEST] = server(display_name="renamed", version=2)
    assert network.json("/openstack/latest/meta_data.json")["name"] == "renamed"
    del network.servers[GUEST]
    assert network.ask("/openstack/latest/meta_data.json")[0] == 404


def test_ec2_trees_and_leaves(network: Network) -> None:
    assert network.lines("/latest") == ["meta-data/", "user-data"]
    assert network.lines("/latest", BARE) == ["meta-data/"]
    names = network.lines("/latest/meta-data/")
    assert names == sorted(names)
    assert {"ami-id", "placement/", "public-keys/", "local-ipv4", "block-device-mapping/"} <= set(names)
    assert network.lines("/latest/meta-data") == names
    leaves = {
        "ami-id": "ami-deadbeef",
        "instance-id": "i-0000002a",
        "hostname": "my-server.novalocal",
        "local-ipv4": "10.0.0.5",
        "instance-type": "m1.tiny",
        "security-groups": "default\nweb",
        "public-keys": "0=mykey",
        "public-keys/": "0=mykey",
        "public-keys/0": "openssh-key",
        "public-keys/0/openssh-key": KEY,
        "placement/availability-zone": "nova",
        "block-device-mapping/root": "/dev/vda",
        "ami-launch-index": "0",
        "public-ipv4": "",
    }
    for path, text in leaves.items():
        assert network.ask(f"/latest/meta-data/{path}")[:2] == (200, text.encode())
    assert network.ask("/2009-04-04/user-data")[1] == b"#!/bin/sh\n\xff"
    assert network.ask("/1.0/meta-data/placement")[0] == 404
    assert "placement/" in network.lines("/2008-02-01/meta-data/")
    assert "instance-action" not in network.lines("/2008-02-01/meta-data/")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/openstack/2030-01-01",
        "/openstack/2030-01-01/meta_data.json",
        "/openstack/latest/nothing",
        "/openstack/latest/meta_data.json/x",
        "/openstack/2012-08-10/network_data.json",
        "/openstack/2012-08-10/password",
        "/openstack/latest/../../latest/meta-data",
        "/latest/nothing",
        "/latest/meta-data/nothing",
        "/latest/meta-data/ami-id/x",
        "/latest/meta-data/public-keys/0/_name",
        "/latest/meta-data/public-keys/1",
        "/latest/meta-data/%00",
        "/latest/%2e%2e/meta-data",
    ],
)
def test_what_is_not_there_is_404(network: Network, path: str) -> None:
    assert network.ask(path)[0] == 404


def test_absent_user_data_and_keys_are_404(network: Network) -> None:
    for path in ("/openstack/latest/user_data", "/latest/user-data", "/latest/meta-data/public-keys/"):
        assert network.ask(path, BARE)[0] == 404
    network.servers[BARE] = server(user_data="")
    assert network.ask("/openstack/latest/user_data", BARE)[:2] == (200, b"")


def test_a_stranger_hears_nothing(network: Network) -> None:
    for path in ("/", "/openstack", "/latest/meta-data/", "/openstack/latest/meta_data.json"):
        assert network.ask(path, NOBODY)[0] == 404


def test_nobody_speaks_for_another(network: Network) -> None:
    for headers in ({"X_Forwarded_For": GUEST}, {"Forwarded": f"for={GUEST}"}, {"x_forwarded_for": ""}):
        assert network.ask("/openstack/latest/meta_data.json", NOBODY, **headers)[0] == 403
        assert network.ask("/openstack/latest/meta_data.json", GUEST, **headers)[0] == 403
    assert network.asked == []


def test_a_database_that_is_away_is_503(network: Network) -> None:
    assert network.ask("/openstack/latest/meta_data.json", BROKEN)[0] == 503


def test_other_methods_are_405(network: Network) -> None:
    for method in ("PUT", "DELETE", "PATCH"):
        assert network.ask("/openstack/latest/meta_data.json", method=method)[0] == 405
    assert network.ask("/openstack/latest/meta_data.json", method="HEAD")[:2] == (200, b"")


def test_a_guest_tells_its_password_once(network: Network) -> None:
    path = "/openstack/2013-04-04/password"
    assert network.ask(path)[:2] == (200, b"")
    assert network.ask(path, method="POST", body=b"x" * 1021)[0] == 413
    assert network.ask(path, method="POST", body=b"\xff")[0] == 400
    assert network.ask(path, method="POST", body=b"\0")[0] == 400
    assert network.ask("/openstack/2012-08-10/password", method="POST", body=b"x")[0] == 404
    assert network.ask("/openstack/latest/meta_data.json", method="POST", body=b"x")[0] == 404
    assert network.ask(path, NOBODY, method="POST", body=b"x")[0] == 404
    secret = b"abcd" * 255
    assert network.ask(path, method="POST", body=secret)[0] == 200
    assert network.ask(path)[:2] == (200, secret)
    assert network.ask(path, method="POST", body=b"other")[0] == 409
    assert network.ask(path, BARE)[:2] == (200, b"")


def test_a_guest_with_an_old_client_is_served(network: Network) -> None:
    with socket.create_connection(("127.0.0.1", network.port), source_address=(GUEST, 0)) as raw:
        raw.sendall(b"GET /openstack/latest/user_data HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n")
        received = b""
        while piece := raw.recv(4096):
            received += piece
    assert received.startswith(b"HTTP/1.")
    assert received.endswith(b"\r\n\r\n#!/bin/sh\n\xff")


async def through_ipv6(host: str) -> tuple[int, list[tuple[str, str]]]:
    """What happens to a request from ``host`` as an ASGI server reports it."""
    asked: list[tuple[str, str]] = []

    async def find(network_id: str, address: str) -> Instance | None:
        asked.append((network_id, address))
        return server()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/latest",
        "headers": [],
        "query_string": b"",
        "client": (host, 1),
    }
    await app(find, "net-9")(scope, receive, send)
    return sent[0]["status"], asked


@pytest.mark.parametrize(
    ("host", "address"),
    [("::ffff:10.0.0.5", "10.0.0.5"), ("fe80::1%tap0", "fe80::1"), ("FD00:0::0:5", "fd00::5")],
)
async def test_addresses_are_asked_for_in_their_usual_form(host: str, address: str) -> None:
    assert await through_ipv6(host) == (200, [("net-9", address)])


async def test_a_sender_without_an_address_hears_nothing() -> None:
    assert await through_ipv6("unix") == (404, [])
