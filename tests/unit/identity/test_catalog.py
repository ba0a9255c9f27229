"""The catalog as clients need it, and what is filled into its addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.db.identity_catalog import Endpoint, Service
from kilonova.services.identity.catalog import REGION, Entries, catalog, configured, filled, places

URLS = {
    name: f"http://10.0.0.1:{port}"
    for name, port in (
        ("identity", 5000),
        ("compute", 8774),
        ("image", 9292),
        ("network", 9696),
        ("placement", 8778),
        ("volume", 8776),
    )
}


def test_names_and_addresses_are_those_that_clients_look_for() -> None:
    found = {each["type"]: each for each in catalog(configured(URLS), "p", "u")}
    assert {kind: each["name"] for kind, each in found.items()} == {
        "block-storage": "cinder",
        "compute": "nova",
        "identity": "keystone",
        "image": "glance",
        "network": "neutron",
        "placement": "placement",
        "volume": "volume",
        "volumev3": "cinderv3",
    }
    assert {kind: each["endpoints"][0]["url"] for kind, each in found.items()} == {
        "block-storage": "http://10.0.0.1:8776/v3",
        "compute": "http://10.0.0.1:8774/v2.1",
        "identity": "http://10.0.0.1:5000/v3",
        "image": "http://10.0.0.1:9292",
        "network": "http://10.0.0.1:9696",
        "placement": "http://10.0.0.1:8778",
        "volume": "http://10.0.0.1:8776/v3",
        "volumev3": "http://10.0.0.1:8776/v3",
    }
    for each in found.values():
        assert [one["interface"] for one in each["endpoints"]] == ["public", "internal", "admin"]
        assert {(one["region"], one["region_id"]) for one in each["endpoints"]} == {(REGION, REGION)}


def test_ids_stay_and_are_all_different() -> None:
    one, two = configured(URLS), configured({**URLS, "image": "http://elsewhere"})
    assert list(one.services) == list(two.services) and list(one.endpoints) == list(two.endpoints)
    assert len({*one.services, *one.endpoints}) == 8 + 24


def test_an_address_that_has_its_ending_gets_no_second() -> None:
    found = configured({"compute": "http://x/v2.1/", "identity": "http://x/v3"})
    assert {each.url for each in found.endpoints.values()} == {"http://x/v2.1", "http://x/v3"}


def test_an_unknown_type_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="dns"):
        configured({**URLS, "dns": "http://x"})


def entries(**endpoint: object) -> Entries:
    service = Service(id="s", type="volumev3", name="cinderv3")
    values = {"id": "e", "service_id": "s", "interface": "public", "url": "http://x", **endpoint}
    return Entries({}, {"s": service}, {"e": Endpoint(**values)})  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["http://x/$(project_id)s", "http://x/%(tenant_id)s"])
def test_the_project_is_filled_in(url: str) -> None:
    assert catalog(entries(url=url), "p1", "u1")[0]["endpoints"][0]["url"] == "http://x/p1"
    assert catalog(entries(url=url), None, "u1")[0]["endpoints"] == [], "nothing to fill in"


def test_what_is_disabled_is_not_shown() -> None:
    assert catalog(entries(enabled=False), "p", "u")[0]["endpoints"] == []
    found = entries()
    off = Entries({}, {"s": Service(id="s", type="x", enabled=False)}, found.endpoints)
    assert catalog(off, "p", "u") == []


@given(st.text("$%()spu_id0x", max_size=40))
def test_filling_in_ends_and_leaves_no_known_place(url: str) -> None:
    result = filled(url, {"project_id": "P", "user_id": "U"})
    assert result is None or places(result) == [] or places(url) == []
    if not places(url):
        assert result == url
