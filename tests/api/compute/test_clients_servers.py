"""Servers by OpenStack's own clients, unmodified, of a fake cloud that is really served."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack import exceptions

from kilonova.testing.embedded import holdings, settled
from tests.api.compute.test_keypairs import ED25519
from tests.api.served import ADMIN, MEMBER, PATIENCE, Served

# What the SDK says of its own use of itself, and the files that it leaves open.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "ResourceWarning")
]

IMAGE = "cirros-0.6.2-x86_64-disk"
JSON = ("-f", "json")
SOON = {"interval": 0.1, "wait": PATIENCE}


@pytest.fixture(scope="module")
def sdk(served: Served) -> Iterator[Any]:
    with served.sdk(MEMBER) as connection:
        yield connection


@pytest.fixture(scope="module")
def admin(served: Served) -> Iterator[Any]:
    with served.sdk(ADMIN) as connection:
        yield connection


def boot(sdk: Any, name: str, **values: Any) -> Any:
    """A server that runs, as the SDK's users make one."""
    made = sdk.create_server(name, image=IMAGE, flavor="m1.nano", network="private", auto_ip=False, **values)
    return sdk.compute.wait_for_server(made, **SOON)


def gone(sdk: Any, server: Any) -> None:
    sdk.compute.delete_server(server)
    sdk.compute.wait_for_delete(server, **SOON)


# ---- openstacksdk ----


def test_sdk_creates_shows_and_changes(sdk: Any) -> None:
    user_data = "#!/bin/sh\necho hello\n"
    server = boot(
        sdk,
        "first",
        userdata=user_data,
        meta={"role": "web"},
        config_drive=True,
        description="by the SDK",
        tags=["blue"],
        min_count=1,
        security_groups=["default"],
        availability_zone="nova",
    )
    assert (server.status, server.vm_state, server.power_state) == ("ACTIVE", "active", 1)
    compute = sdk.compute
    shown = compute.get_server(server.id)
    assert (shown.name, shown.description, shown.metadata) == ("first", "by the SDK", {"role": "web"})
    assert (shown.tags, shown.has_config_drive, shown.availability_zone) == (["blue"], "True", "nova")
    assert shown.flavor["original_name"] == "m1.nano"
    assert shown.compute_host is None
    (address,) = shown.addresses["private"]
    assert (address["version"], address["OS-EXT-IPS:type"]) == (4, "fixed")
    assert sdk.get_server("first").private_v4 == address["addr"]
    assert compute.find_server("first").id == server.id
    (interface,) = compute.server_interfaces(server.id)
    assert interface.fixed_ips[0]["ip_address"] == address["addr"]
    assert [ip.address for ip in compute.server_ips(server.id)] == [address["addr"]]

    changed = compute.update_server(server.id, name="renamed", description="", hostname="host-1")
    assert (changed.name, changed.description, changed.hostname) == ("renamed", "", "host-1")
    compute.set_server_metadata(server.id, role="db", more="x")
    assert compute.get_server_metadata(server.id).metadata == {"role": "db", "more": "x"}
    compute.delete_server_metadata(server.id, ["more"])
    compute.add_tag_to_server(server.id, "green")
    compute.remove_tag_from_server(server.id, "blue")
    assert compute.get_server(server.id).tags == ["green"]
    gone(sdk, server)


def test_sdk_acts(sdk: Any) -> None:
    server, compute = boot(sdk, "actor"), sdk.compute
    compute.stop_server(server.id)
    compute.wait_for_server(compute.get_server(server.id), "SHUTOFF", **SOON)
    with pytest.raises(exceptions.ConflictException, match="Cannot 'stop' instance"):
        compute.stop_server(server.id)
    compute.start_server(server.id)
    compute.wait_for_server(compute.get_server(server.id), "ACTIVE", **SOON)
    compute.reboot_server(server.id, "SOFT")
    compute.wait_for_server(compute.get_server(server.id), "ACTIVE", **SOON)
    compute.lock_server(server.id, locked_reason="mine")
    locked = compute.get_server(server.id)
    assert (locked.is_locked, locked.locked_reason) == (True, "mine")
    with pytest.raises(exceptions.ConflictException, match="is locked"):
        compute.delete_server(server.id)
    compute.unlock_server(server.id)
    assert compute.get_server_console_output(server.id, length=1) == {"output": "login: "}

    actions = list(compute.server_actions(server.id))
    assert [each.action for each in actions] == ["unlock", "lock", "reboot", "start", "stop", "create"]
    shown = compute.get_server_action(actions[-1].request_id, server.id)
    assert {event.result for event in shown.events} == {"Success"}
    gone(sdk, server)
    assert compute.find_server(server.id) is None
    assert next(each.action for each in compute.server_actions(server.id)) == "delete"


def test_sdk_lists_and_pages(sdk: Any, admin: Any) -> None:
    compute = sdk.compute
    group = compute.create_server(
        name="page", image_id=sdk.image.find_image(IMAGE).id, flavor_id="42", networks="none", min_count=5
    )
    mine = list(compute.servers(name="^page-", limit=2))
    assert sorted(each.name for each in mine) == [f"page-{n}" for n in range(1, 6)]
    assert group.id in [each.id for each in mine]
    for each in mine:
        compute.wait_for_server(each, "ACTIVE", **SOON)
    brief = list(compute.servers(details=False, name="^page-", sort_key="display_name", sort_dir="asc"))
    assert [each.name for each in brief] == [f"page-{n}" for n in range(1, 6)]
    assert list(compute.servers(name="^page-", status="SHUTOFF")) == []
    assert len(sdk.list_servers(filters={"name": "^page-"})) == 5
    assert [each.name for each in admin.compute.servers(name="^page-")] == []
    everybodys = list(admin.compute.servers(all_projects=True, name="^page-"))
    assert {each.id for each in everybodys} == {each.id for each in mine}
    assert all(each.compute_host and each.instance_name for each in everybodys)
    assert admin.compute.get_server_diagnostics(mine[0].id).state == "running"
    admin.compute.reset_server_state(mine[0].id, "error")
    assert compute.get_server(mine[0].id).status == "ERROR"
    for each in mine:
        gone(sdk, each)


def test_sdk_hears_why_something_is_refused(sdk: Any, admin: Any) -> None:
    compute = sdk.compute
    image = sdk.image.find_image(IMAGE).id
    good = {"name": "x", "image_id": image, "flavor_id": "42", "networks": "none"}
    with pytest.raises(exceptions.BadRequestException, match="Flavor nowhere could not be found"):
        compute.create_server(**{**good, "flavor_id": "nowhere"})
    with pytest.raises(exceptions.BadRequestException, match="Invalid key_name provided"):
        compute.create_server(**good, key_name="nowhere")
    with pytest.raises(exceptions.ForbiddenException, match=r"Quota exceeded for .*instances"):
        compute.create_server(**good, min_count=11)
    with pytest.raises(exceptions.BadRequestException, match="base 64"):
        compute.create_server(**good, user_data="?")
    with pytest.raises(exceptions.ForbiddenException, match="forced_host"):
        compute.create_server(**good, availability_zone="nova:host")
    with pytest.raises(exceptions.NotFoundException, match="could not be found"):
        compute.get_server("99999999-9999-4999-8999-999999999999")
    with pytest.raises(exceptions.ForbiddenException, match="get_all_tenants"):
        list(compute.servers(all_projects=True))
    hers = admin.compute.create_server(**good)
    for refused in (compute.get_server, compute.stop_server):
        with pytest.raises(exceptions.NotFoundException):
            refused(hers.id)
    gone(admin, hers)
    assert [each for each in compute.servers() if each.name == "x"] == []


@pytest.mark.parametrize("version", ["2.1", "2.104"])
def test_sdk_at_other_microversions(served: Served, version: str) -> None:
    """The oldest, and the newest that no client asks for by itself."""
    with served.sdk(MEMBER, compute_default_microversion=version) as connection:
        server = boot(connection, f"at {version}")
        assert server.status == "ACTIVE"
        gone(connection, server)


# ---- the openstack command ----


def test_command_line(served: Served, tmp_path: Path) -> None:
    def cli(*words: str, **how: Any) -> Any:
        return served.openstack(*words, **{"cloud": MEMBER, **how})

    data = tmp_path / "user-data"
    data.write_text("#!/bin/sh\n")
    key = tmp_path / "key.pub"
    key.write_text(ED25519)
    cli("keypair", "create", "--public-key", str(key), "clients-key")
    words = ["--image", IMAGE, "--flavor", "m1.nano", "--key-name", "clients-key", "--network", "private"]
    words += ["--user-data", str(data), "--property", "role=web", "--tag", "blue", "--description", "by hand"]
    words += ["--use-config-drive", "--security-group", "default", "--hostname", "web1"]
    made = cli("server", "create", *words, "--wait", "web one", *JSON)
    assert (made["status"], made["name"], made["key_name"]) == ("ACTIVE", "web one", "clients-key")
    assert (made["properties"], made["tags"], made["description"]) == ({"role": "web"}, ["blue"], "by hand")
    assert made["addresses"]["private"][0].startswith("10.11.")
    assert (made["OS-EXT-SRV-ATTR:hostname"], len(made["adminPass"])) == ("web1", 12)
    listed = cli("server", "list", "--long", "--name", "^web one$", *JSON)
    seen = [(each["Name"], each["Status"], each["Flavor"]) for each in listed]
    assert seen == [("web one", "ACTIVE", "m1.nano")]
    changes = ["--name", "web two", "--description", "changed", "--property", "x=y", "--tag", "green"]
    cli("server", "set", "web one", *changes)
    cli("server", "unset", "web two", "--property", "role", "--tag", "blue")
    cli("server", "stop", "web two")
    served.run(settled(served.cloud, made["id"], PATIENCE))
    shown = cli("server", "show", "web two", *JSON)
    assert (shown["description"], shown["properties"], shown["tags"]) == ("changed", {"x": "y"}, ["green"])
    assert (shown["status"], shown["OS-EXT-STS:power_state"]) == ("SHUTOFF", 4)
    assert cli("server", "list", "--status", "SHUTOFF", "--name", "web two", *JSON)[0]["ID"] == made["id"]
    for command in ("start", "reboot"):
        cli("server", command, "web two")
        served.run(settled(served.cloud, made["id"], PATIENCE))
    assert cli("console", "log", "show", "web two", "--lines", "1") == "login: \n"
    cli("server", "lock", "--reason", "mine", "web two")
    assert "is locked" in cli("server", "stop", "web two", fails=True)
    cli("server", "unlock", "web two")
    seen = cli("server", "show", made["id"], *JSON, cloud=ADMIN)
    assert seen["OS-EXT-SRV-ATTR:user_data"] == base64.b64encode(b"#!/bin/sh\n").decode()
    assert seen["OS-EXT-SRV-ATTR:host"] == seen["OS-EXT-SRV-ATTR:hypervisor_hostname"] is not None
    assert "No Server found for web one" in cli("server", "show", "web one", fails=True)
    cli("server", "delete", "--wait", "web two")
    events = cli("server", "event", "list", made["id"], *JSON)
    expected = ["delete", "unlock", "lock", "reboot", "start", "stop", "create"]
    assert [each["Action"] for each in events] == expected
    shown = cli("server", "event", "show", made["id"], events[-1]["Request ID"], *JSON)
    assert shown["action"] == "create"
    assert "compute__do_build_and_run_instance" in str(shown["events"])
    cli("keypair", "delete", "clients-key")
    assert served.run(holdings(served.cloud, made["id"])).nothing


def test_command_line_of_several(served: Served) -> None:
    words = ["--image", IMAGE, "--flavor", "m1.nano", "--no-network", "--min", "2", "--max", "2"]
    served.openstack("server", "create", *words, "--wait", "farm", cloud=MEMBER)
    listed = served.openstack(
        "server", "list", "--name", "^farm-", "--sort-column", "Name", *JSON, cloud=MEMBER
    )
    assert [(each["Name"], each["Status"]) for each in listed] == [("farm-1", "ACTIVE"), ("farm-2", "ACTIVE")]
    served.openstack("server", "delete", "--wait", "farm-1", "farm-2", cloud=MEMBER)
    everything = served.openstack("server", "list", "--all-projects", "--deleted", "--name", "^farm-", *JSON)
    assert {each["Status"] for each in everything} == {"DELETED"}


# ---- on the wire ----


def test_on_the_wire(served: Served, sdk: Any) -> None:
    """What no client library would send."""
    token, port = sdk.session.get_token(), served.cloud.settings.port("compute")

    def ask(method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            given = {"X-Auth-Token": token, "Content-Type": "application/json", **headers}
            connection.request(method, path, body or None, given)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    assert ask("GET", "/v2.1/servers")[0] == 200
    assert ask("GET", "/v2.1/servers/%00")[0] == 404
    assert ask("GET", "/v2.1/servers/%FF%FE")[0] == 404
    assert ask("GET", "/v2.1/servers/..%2F..%2Fetc%2Fpasswd")[0] == 404
    assert ask("GET", "/v2.1/servers?name=%00")[0] == 400
    assert ask("GET", "/v2.1/servers?name=%FF")[0] == 400
    assert ask("POST", "/v2.1/servers", b" " * 114_689)[0] == 413
    assert ask("POST", "/v2.1/servers", b'{"server": \xff}')[0] == 400
    assert ask("HEAD", "/v2.1/servers") == (200, None)
    assert ask("GET", "/v2.1/servers", **{"X-Auth-Token": token[:-4] + "AAAA"})[0] == 401
    status, fault = ask("GET", "/v2.1/servers", **{"OpenStack-API-Version": "compute 9.9"})
    assert (status, fault["computeFault"]["code"]) == (406, 406)
