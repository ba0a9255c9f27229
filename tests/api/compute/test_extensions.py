"""The frozen list of extensions, which old clients look things up in."""

from __future__ import annotations

from tests.api.compute.small_cloud import MEMBER, SmallCloud, bands, check_keys, cloud

__all__ = ["cloud"]  # a fixture


async def test_the_list_and_its_entries(cloud: SmallCloud) -> None:
    found = (await cloud.get("/extensions", token=MEMBER))["extensions"]
    aliases = [one["alias"] for one in found]
    assert aliases == sorted(set(aliases))
    assert {"os-keypairs", "OS-EXT-STS", "os-server-sort-keys", "os-simple-tenant-usage", "NMN"} <= {*aliases}
    for version in bands("extensions.list", "extensions.show"):
        check_keys("extensions.list", version, await cloud.get("/extensions", version=version))
        shown = await cloud.get("/extensions/os-keypairs", version=version, token=MEMBER)
        check_keys("extensions.show", version, shown)
        assert shown["extension"] == next(one for one in found if one["alias"] == "os-keypairs")
    assert shown["extension"]["name"] == "Keypairs"


async def test_bad_requests_are_refused(cloud: SmallCloud) -> None:
    for alias in ("none", "OS-KEYPAIRS", "%20"):
        reply = await cloud("GET", f"/extensions/{alias}")
        assert (reply.status, reply.message) == (404, "The resource could not be found.")
    for path in ("/extensions", "/extensions/os-keypairs"):
        assert (await cloud("GET", f"{path}?x=1", version=101)).status == 200
        assert (await cloud("GET", f"{path}?x=1", version=102)).status == 400
        assert (await cloud("GET", path, token="nobody")).status == 401
        assert (await cloud("DELETE", path)).status == 404
