"""Every attribute of every resource with every nasty value: an answer, and never a fault of ours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import requests

from kilonova.services.network.api import RESOURCES
from tests.api.network.conftest import Face

NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**40,
    1.5,
    "",
    " ",
    "x" * 300,
    "a\x00b",
    "\ud83d",  # half a character
    "\U0001f600",
    "10.0.0.0/8",
    "fd00::/64",
    "fe80::1%eth0",
    "::ffff:10.0.0.1",
    "default",
    [],
    [None],
    ["x"],
    [[]],
    [{"ip_address": None}],
    [{"ip_address": "fd00::1"}],
    [{"start": "10.0.0.5", "end": "fd00::5"}],
    {},
    {"x": {"y": []}},
]


Bad = tuple[str, str, Any, int, str]
"""Method, attribute, value, and the answer that should not have been."""


class Sender:
    """Asks one collection, and keeps the answers that are faults of ours or not in Neutron's form."""

    def __init__(self, url: str, name: str, plural: str) -> None:
        self.url, self.name, self.plural = url, name, plural
        self.bad: list[Bad] = []
        self.count = 0
        self._session = requests.Session()
        self._session.headers["X-Auth-Token"] = "admin"

    def ask(self, method: str, where: str, attribute: str, value: Any, **more: Any) -> requests.Response:
        self.count += 1
        answer = self._session.request(method, where, timeout=60, **more)
        strange = answer.status_code >= 400 and "NeutronError" not in answer.text
        if answer.status_code >= 500 or strange:
            self.bad.append((method, attribute, value, answer.status_code, answer.text))
        return answer

    def bodies(self, attribute: str, base: dict[str, Any], existing: str) -> None:
        """An attribute of a new resource and of an existing one with every value."""
        for value in NASTY:
            body = {self.name: {**base, attribute: value}}
            made = self.ask("POST", self.url, attribute, value, json=body)
            if made.status_code == 201:
                self.ask("DELETE", f"{self.url}/{made.json()[self.name]['id']}", attribute, value)
            if existing:
                body = {self.name: {attribute: value}}
                self.ask("PUT", f"{self.url}/{existing}", attribute, value, json=body)

    def queries(self, attribute: str) -> None:
        for value in NASTY:
            sent = str(value).encode(errors="surrogatepass")
            self.ask("GET", self.url, attribute, value, params={attribute: sent})

    def whole_bodies(self) -> None:
        for value in NASTY:
            self.ask("POST", self.url, "body", value, json=value)
            self.ask("POST", self.url, "body", value, json={self.name: value, self.plural: value})

    def close(self) -> None:
        self._session.close()


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: each.name)
async def test_no_value_is_answered_with_a_fault_of_ours(face: Face, resource: Any) -> None:
    network = await face.make("network", who="admin", name="n")
    subnet = await face.make("subnet", "admin", network_id=network["id"], cidr="10.5.0.0/24", ip_version=4)
    port = await face.make("port", "admin", network_id=network["id"])
    group = await face.make("security_group", "admin", name="g")
    right: dict[str, tuple[dict[str, Any], str]] = {
        "network": ({}, network["id"]),
        "subnet": ({"network_id": network["id"], "cidr": "10.6.0.0/24", "ip_version": 4}, subnet["id"]),
        "port": ({"network_id": network["id"]}, port["id"]),
        "security_group": ({"name": "x"}, group["id"]),
        "security_group_rule": ({"security_group_id": group["id"], "direction": "ingress"}, ""),
    }
    base, existing = right[resource.name]
    sender = Sender(face.url + resource.path, resource.name, resource.plural)

    def send() -> None:
        for attribute in resource.fields:
            sender.bodies(attribute, base, existing)
        for attribute in (*resource.filters.columns, *resource.filters.special):
            sender.queries(attribute)
        for attribute in ("limit", "marker", "sort_key"):
            sender.queries(attribute)
        sender.whole_bodies()
        sender.close()

    await asyncio.to_thread(send)
    assert sender.count > 300
    assert sender.bad == []
