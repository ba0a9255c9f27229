"""Key pairs over HTTP: whose they are, their fields by microversion, and which keys are good ones."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.api.compute.small_cloud import MEMBER, OTHER, SmallCloud, bands, check_keys, cloud, db

__all__ = ["cloud", "db"]  # fixtures

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA9nZ0eZKzC+2FOx8wGwmSmkPFbtV/waEd7t4cUp0hTU me@here"
MD5 = "da:81:0a:80:6e:37:0e:a8:f7:fb:aa:2e:1b:64:7e:1f"  # by ssh-keygen -l -E md5


async def add(cloud: SmallCloud, name: str = "k", version: int = 10, **more: Any) -> Any:
    body = {"keypair": {"name": name, "public_key": ED25519, **more}}
    reply = await cloud("POST", "/os-keypairs", body, version=version, token=MEMBER)
    assert reply.status == (201 if version > 1 else 200), reply.raw
    return reply.json["keypair"]


async def test_each_microversion_has_its_own_keys(cloud: SmallCloud) -> None:
    routes = ("os-keypairs.create", "os-keypairs.show", "os-keypairs.list")
    for version in bands(*routes):
        body = {"keypair": {"name": f"k{version}", "public_key": ED25519}}
        made = await cloud("POST", "/os-keypairs", body, version=version, token=MEMBER)
        assert made.status == (200 if version == 1 else 201), made.raw
        check_keys("os-keypairs.create", version, made.json)
        path = f"/os-keypairs/k{version}"
        check_keys("os-keypairs.show", version, await cloud.get(path, version=version, token=MEMBER))
        listed = await cloud.get("/os-keypairs?limit=1", version=version, token=MEMBER)
        check_keys("os-keypairs.list", version, listed)
        assert ("keypairs_links" in listed) == (version >= 35)
        gone = await cloud("DELETE", path, version=version, token=MEMBER)
        assert (gone.status, gone.raw) == (202 if version == 1 else 204, b"")


@pytest.mark.capability("API-145")
async def test_an_imported_key_is_kept_with_its_fingerprint(cloud: SmallCloud) -> None:
    made = await add(cloud)
    assert made == {
        "name": "k",
        "public_key": ED25519,
        "fingerprint": MD5,
        "type": "ssh",
        "user_id": "u-member",
    }
    shown = (await cloud.get("/os-keypairs/k", version=10, token=MEMBER))["keypair"]
    assert shown["deleted"] is False and shown["deleted_at"] is None and shown["updated_at"] is None
    assert shown["id"] > 0 and len(shown["created_at"]) == 26


@pytest.mark.capability("API-145")
async def test_a_key_is_made_where_none_is_given(cloud: SmallCloud) -> None:
    reply = await cloud("POST", "/os-keypairs", {"keypair": {"name": "k"}}, token=MEMBER)
    assert reply.status == 200
    made = reply.json["keypair"]
    check_keys("os-keypairs.create", 1, reply.json)
    private = serialization.load_pem_private_key(made["private_key"].encode(), None)
    ours = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    assert made["public_key"].startswith(ours.decode())
    assert "private_key" not in (await cloud.get("/os-keypairs/k", token=MEMBER))["keypair"]
    body = {"keypair": {"name": "w", "type": "x509"}}
    made = (await cloud("POST", "/os-keypairs", body, version=91, token=MEMBER)).json["keypair"]
    certificate = x509.load_pem_x509_certificate(made["public_key"].encode())
    assert (
        certificate.public_key()
        == serialization.load_pem_private_key(made["private_key"].encode(), None).public_key()
    )
    assert made["fingerprint"].count(":") == 19
    imported = {"keypair": {"name": "i", "type": "x509", "public_key": made["public_key"]}}
    again = await cloud("POST", "/os-keypairs", imported, version=92, token=MEMBER)
    assert again.status == 201 and again.json["keypair"]["fingerprint"] == made["fingerprint"]
    refused = await cloud("POST", "/os-keypairs", {"keypair": {"name": "n"}}, version=92, token=MEMBER)
    assert refused.status == 400 and "public_key" in refused.message


@pytest.mark.capability("API-144")
async def test_names_by_microversion(cloud: SmallCloud) -> None:
    for name, version, status in (
        ("a_b-c d", 10, 201),
        ("a.b@c", 91, 400),
        ("a.b@c", 92, 201),
        ("a/b", 92, 400),
        ("ä", 92, 400),
        ("", 10, 400),
        (" a", 10, 400),
        ("x" * 255, 10, 201),
        ("x" * 256, 10, 400),
        (None, 10, 400),
        (5, 10, 400),
        ("a\n", 10, 400),
    ):
        body = {"keypair": {"name": name, "public_key": ED25519}}
        reply = await cloud("POST", "/os-keypairs", body, version=version, token=MEMBER)
        assert reply.status == status, (name, version, reply.raw)
    assert (await cloud.get("/os-keypairs/a.b@c", token=MEMBER))["keypair"]["name"] == "a.b@c"


async def test_bad_requests_are_refused(cloud: SmallCloud) -> None:
    for change in (
        {"public_key": ""},
        {"public_key": "ssh-rsa"},
        {"public_key": "ssh-rsa bm90IGEga2V5"},
        {"public_key": ED25519.replace("ssh-ed25519", "ssh-rsa", 1)},
        {"public_key": ED25519 + "\n" + ED25519},
        {"public_key": ED25519[:50]},
        {"public_key": None},
        {"public_key": 5},
        {"public_key": "\ud800"},
        {"type": "gpg"},
        {"type": None},
        {"type": "x509"},
        {"user_id": ""},
        {"unknown": 1},
    ):
        body = {"keypair": {"name": "k", "public_key": ED25519, **change}}
        reply = await cloud("POST", "/os-keypairs", body, version=10)
        assert reply.status == 400, (change, reply.raw)
    for version, change in ((1, {"type": "ssh"}), (9, {"user_id": "u-admin"})):
        body = {"keypair": {"name": "k", "public_key": ED25519, **change}}
        assert (await cloud("POST", "/os-keypairs", body, version=version)).status == 400
    for path in ("/os-keypairs?limit=x", "/os-keypairs?marker=none", "/os-keypairs?limit=-1"):
        assert (await cloud("GET", path, version=35)).status == 400
        assert (await cloud("GET", path, version=34)).status == 200
    assert (await cloud("GET", "/os-keypairs?x=1", version=75)).status == 400
    assert (await cloud("GET", "/os-keypairs?x=1", version=74)).status == 200


@pytest.mark.capability("API-144")
async def test_the_quota_and_names_that_are_taken(cloud: SmallCloud) -> None:
    cloud.option("key_pairs", 2, "quota")
    await add(cloud, "a")
    body = {"keypair": {"name": "a", "public_key": ED25519}}
    taken = await cloud("POST", "/os-keypairs", body, token=MEMBER)
    assert (taken.status, taken.message) == (409, "Key pair 'a' already exists.")
    await add(cloud, "b")
    full = await cloud("POST", "/os-keypairs", {"keypair": {"name": "c"}}, token=MEMBER)
    assert (full.status, full.message) == (403, "Quota exceeded, too many key pairs.")


async def test_keys_are_their_users_and_administrators_see_them(cloud: SmallCloud) -> None:
    await add(cloud)
    for method in ("GET", "DELETE"):
        assert (await cloud(method, "/os-keypairs/k", token=OTHER)).status == 404
        path = "/os-keypairs/k?user_id=u-member"
        assert (await cloud(method, path, version=10, token=OTHER)).status == 403
        assert (await cloud(method, path, version=9)).status == 404  # not yet looked at
    assert (await cloud("GET", "/os-keypairs?user_id=u-member", version=10, token=OTHER)).status == 403
    found = await cloud.get("/os-keypairs?user_id=u-member", version=10)
    assert [each["keypair"]["name"] for each in found["keypairs"]] == ["k"]
    body = {"keypair": {"name": "given", "public_key": ED25519, "user_id": "u-member"}}
    assert (await cloud("POST", "/os-keypairs", body, version=10, token=OTHER)).status == 403
    made = await cloud("POST", "/os-keypairs", body, version=10)
    assert made.json["keypair"]["user_id"] == "u-member"
    assert (await cloud("DELETE", "/os-keypairs/k?user_id=u-member", version=10)).status == 204
    assert (await cloud("DELETE", "/os-keypairs/k", version=10, token=MEMBER)).status == 404


async def test_pages(cloud: SmallCloud) -> None:
    for name in ("c", "a", "b"):
        await add(cloud, name)
    first = await cloud.get("/os-keypairs?limit=2", version=35, token=MEMBER)
    assert [each["keypair"]["name"] for each in first["keypairs"]] == ["a", "b"]
    rest = await cloud.follow(first["keypairs_links"], version=35, token=MEMBER)
    assert [each["keypair"]["name"] for each in rest["keypairs"]] == ["c"]
