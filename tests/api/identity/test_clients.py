"""The ``openstack`` command and openstacksdk, unmodified, as administrator and as an ordinary user."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kilonova.clock import SystemClock
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.services.identity.api import app
from kilonova.services.identity.bootstrap import bootstrap
from kilonova.services.identity.builtin import BuiltinIdentity
from kilonova.services.identity.passwords import Passwords
from kilonova.web.server import HttpServer, bind
from tests.api.clients import Clients, shell
from tests.api.identity.conftest import CHEAP
from tests.api.identity.face import ADMIN_PASSWORD, DEMO_PASSWORD

pytestmark = pytest.mark.asyncio(loop_scope="module")

As = Callable[..., Clients]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def as_user(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[As]:
    """Clients of a served identity service, by user, password and project."""
    directory, clock = tmp_path_factory.mktemp("clients"), SystemClock()
    db = SqliteDatabase(directory / "kilonova.db", clock)
    await bring_up(db)
    passwords = Passwords(clock, CHEAP)
    identity = BuiltinIdentity(db, clock, Path(directory / "keys"), passwords=passwords)
    await bootstrap(db, clock, ADMIN_PASSWORD, DEMO_PASSWORD, passwords=passwords)
    listening = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    urls = {"identity": url, "compute": "http://127.0.0.1:1", "image": "http://127.0.0.1:2"}
    server = HttpServer(app(identity, urls, url), [listening])
    await server.start()
    stack = contextlib.AsyncExitStack()
    openstack = await stack.enter_async_context(shell())

    def clients(user: str = "admin", password: str = ADMIN_PASSWORD, **auth: str | None) -> Clients:
        root = f"{url}{auth.pop('prefix', '')}/v3"
        return Clients(
            openstack, root, **{"username": user, "password": password, "project_name": user, **auth}
        )

    yield clients
    await stack.aclose()
    await server.stop()
    identity.close()
    await db.close()


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return sorted(each[name] for each in rows)


async def test_users_projects_and_roles(as_user: As) -> None:
    """What an administrator does for a new user."""
    found = await as_user().openstack(
        "project create team --description 'a team' --tag red --property floor=3 -f json",
        "project create --parent team below -f json",
        "user create ann --project team --password sesame --email ann@example.org -f json",
        "role add --user ann --project team member",
        "role assignment list --user ann --project team --names -f json",
        "role assignment list --user ann --effective --names -f json",
        "project list -f json",
        "project list --user ann -f json",
        "project list --tags red -f json",
        "project list --parent team -f json",
        "user list -f json",
        "user list --project team -f json",
        "user show ann -f json",
        "project show team -f json",
        "project set team --name crew --description new --tag blue --property floor=4",
        "project show crew -f json",
        "user set ann --email ann@example.com --description hers",
        "user show ann -f json",
        "project set crew --disable",
        "project show crew -f json",
        "project set crew --enable",
    )
    team, _, ann, _, direct, effective, listed, hers, red, children, users, of_team, shown, project = found[
        :14
    ]
    assert (team["description"], team["tags"], team["floor"], team["enabled"]) == (
        "a team",
        ["red"],
        "3",
        True,
    )
    assert (ann["email"], ann["default_project_id"]) == ("ann@example.org", team["id"])
    assert [(each["Role"], each["User"], each["Project"]) for each in direct] == [
        ("member", "ann@Default", "team@Default")
    ]
    assert column(effective, "Role") == ["member", "reader"]
    assert {"admin", "demo", "service", "team", "below"} <= set(column(listed, "Name"))
    assert column(hers, "Name") == column(red, "Name") == ["team"] and column(children, "Name") == ["below"]
    assert {"admin", "demo", "ann"} <= set(column(users, "Name")) and column(of_team, "Name") == ["ann"]
    assert shown["id"] == ann["id"] and "password" not in shown and project["id"] == team["id"]
    changed, _, new, _, disabled = found[15:20]
    assert (changed["description"], sorted(changed["tags"]), changed["floor"]) == (
        "new",
        ["blue", "red"],
        "4",
    )
    assert (new["email"], new["description"]) == ("ann@example.com", "hers")
    assert disabled["enabled"] is False


async def test_what_the_new_user_may_do(as_user: As) -> None:
    team, ann, *_ = await as_user().openstack(
        "project create crew2 -f json",
        "user create ann2 --password sesame -f json",
        "role add --user ann2 --project crew2 member",
    )
    mine = as_user("ann2", "sesame", project_name="crew2")
    issued, catalog, nova, own = await mine.openstack(
        "token issue -f json", "catalog list -f json", "catalog show nova -f json", "project list -f json"
    )
    assert (issued["project_id"], issued["user_id"]) == (team["id"], ann["id"])
    assert column(catalog, "Name") == ["glance", "keystone", "nova"] and nova["type"] == "compute"
    assert column(own, "Name") == ["crew2"]
    await mine.openstack("user password set --original-password sesame --password opened")
    await mine.refused("token issue", "401")
    mine = as_user("ann2", "opened", project_name="crew2")
    await mine.refused("user list", "403")
    await mine.refused("user create eve", "403")
    await mine.run("role add --user ann2 --project crew2 admin")  # the client keeps the refusal to itself
    (issued,) = await mine.openstack("token issue -f json")
    await mine.refused("role list", "403")
    (roles,) = await as_user().openstack("role assignment list --user ann2 --names -f json")
    assert column(roles, "Role") == ["member"]
    await mine.refused("project delete crew2", "403")
    await as_user().openstack(
        "role remove --user ann2 --project crew2 member",
        "user delete ann2",
        "project delete crew2",
    )
    await as_user().refused("user show ann2", "No User found for ann2")
    await as_user().refused("project show crew2", "crew2")


async def test_domains_groups_and_roles(as_user: As) -> None:
    found = await as_user().openstack(
        "domain create acme --description d -f json",
        "domain list -f json",
        "group create staff --domain acme -f json",
        "user create bob --domain acme --password x -f json",
        "group add user staff bob --group-domain acme --user-domain acme",
        "group contains user staff bob --group-domain acme --user-domain acme",
        "user list --group staff -f json",
        "group list --domain acme -f json",
        "group list --user bob --user-domain acme -f json",
        "group set staff --domain acme --description people",
        "group show staff --domain acme -f json",
        "role create watcher --description w -f json",
        "role set watcher --name viewer",
        "role show viewer -f json",
        "role list -f json",
        "role add --group staff --group-domain acme --domain acme viewer",
        "role assignment list --domain acme --names -f json",
        "role add --user bob --user-domain acme --system all reader",
        "role assignment list --system all --names -f json",
        "implied role create viewer --implied-role reader",
        "implied role list -f json",
    )
    domain, domains, group, bob, _, contains, members, groups, of_bob, _, shown, *roles = found
    assert domain["enabled"] and {"acme", "Default"} <= set(column(domains, "Name"))
    assert group["domain_id"] == bob["domain_id"] == domain["id"]
    assert "bob in group staff" in contains
    assert column(members, "Name") == ["bob"] and column(groups, "Name") == column(of_bob, "Name") == [
        "staff"
    ]
    assert shown["description"] == "people"
    created, _, viewer, listed, _, given, _, system, _, implied = roles
    assert viewer["id"] == created["id"]
    assert {"admin", "manager", "member", "reader", "service", "viewer"} <= set(column(listed, "Name"))
    assert [(each["Role"], each["Group"]) for each in given] == [("viewer", "staff@acme")]
    assert ("reader", "bob@acme") in [(each["Role"], each["User"]) for each in system]
    assert {"Prior Role Name": "viewer", "Implied Role Name": "reader"}.items() <= next(
        each for each in implied if each["Prior Role Name"] == "viewer"
    ).items()
    await as_user().refused("domain delete acme", "disable it first")
    await as_user().refused("role delete admin", "immutable")
    await as_user().openstack(
        "implied role delete viewer --implied-role reader",
        "role remove --group staff --group-domain acme --domain acme viewer",
        "role remove --user bob --user-domain acme --system all reader",
        "group remove user staff bob --group-domain acme --user-domain acme",
        "role delete viewer",
        "group delete staff --domain acme",
        "domain set acme --disable",
        "domain delete acme",
    )


async def test_the_catalog(as_user: As) -> None:
    found = await as_user().openstack(
        "service list -f json",
        "endpoint list -f json",
        "endpoint list --service nova --interface public -f json",
        "region list -f json",
        "service create --name cinderv3 --description v volumev3 -f json",
        "region create Two --description two -f json",
        "endpoint create --region Two volumev3 public 'http://cinder/v3/%(project_id)s' -f json",
        "endpoint list --region Two -f json",
        "catalog show cinderv3 -f json",
        "service set cinderv3 --name cinder3 --disable",
        "service show cinder3 -f json",
        "region set Two --description new",
        "region show Two -f json",
    )
    services, endpoints, nova, regions, service, _, endpoint, of_two, shown, _, changed, _, region = found
    assert column(services, "Name") == ["glance", "keystone", "nova"] and len(endpoints) == 9
    assert column(nova, "URL") == ["http://127.0.0.1:1/v2.1"] and column(regions, "Region") == ["RegionOne"]
    assert column(of_two, "ID") == [endpoint["id"]]
    project = (await as_user().openstack("project show admin -f json"))[0]["id"]
    assert shown["endpoints"][0]["url"] == f"http://cinder/v3/{project}"
    assert (changed["id"], changed["enabled"], region["description"]) == (service["id"], False, "new")
    (shown,) = await as_user().openstack(f"endpoint show {endpoint['id']} -f json")
    assert (shown["interface"], shown["region_id"]) == ("public", "Two")
    await as_user().openstack(
        f"endpoint set {endpoint['id']} --url http://other --disable",
        f"endpoint delete {endpoint['id']}",
        "service delete cinder3",
        "region delete Two",
    )
    await as_user().refused("service delete nova", "configuration")
    await as_user().refused("region delete RegionOne", "configuration")
    await as_user().refused("service show cinder3", "cinder3")


@pytest.mark.parametrize("prefix", ["", "/identity"])
async def test_tokens(as_user: As, prefix: str) -> None:
    clients = as_user("demo", DEMO_PASSWORD, prefix=prefix)
    (issued,) = await clients.openstack("token issue -f json")
    by_token = as_user(
        prefix=prefix,
        auth_type="token",
        token=issued["id"],
        project_name="demo",
        **dict.fromkeys(("username", "password", "user_domain_name")),
    )
    (again,) = await by_token.openstack("token issue -f json")
    assert (again["user_id"], again["project_id"]) == (issued["user_id"], issued["project_id"])
    await clients.openstack(f"token revoke {issued['id']}")
    await by_token.refused("token issue", "401")


async def test_who_is_wrong_is_not_told(as_user: As) -> None:
    texts = {
        (await as_user(user, "wrong", project_name="demo").refused("token issue", "401")).partition(
            "Request-ID"
        )[0]
        for user in ("demo", "nobody")
    }
    assert len(texts) == 1


async def test_a_system_scope_and_no_scope(as_user: As) -> None:
    no_project = dict.fromkeys(("project_name", "project_domain_name"))
    admin = as_user(**no_project, system_scope="all")
    issued, domains = await admin.openstack("token issue -f json", "domain list -f json")
    assert issued["system"] == "all" and "Default" in column(domains, "Name")
    demo = as_user("demo", DEMO_PASSWORD, **no_project)
    (own,) = await demo.openstack("project list --my-projects -f json")
    assert column(own, "Name") == ["demo"]


async def test_the_sdk(as_user: As) -> None:
    def administer(cloud: Any) -> None:
        identity = cloud.identity
        project = identity.create_project(name="sdk", domain_id="default", tags=["a"])
        user = identity.create_user(
            name="sdk", password="p", domain_id="default", default_project_id=project.id
        )
        role = identity.find_role("member")
        identity.assign_project_role_to_user(project, user, role)
        assert identity.validate_user_has_project_role(project, user, role)
        found = list(identity.role_assignments(scope_project_id=project.id))
        assert [each.user["id"] for each in found] == [user.id]
        assert [each.name for each in identity.user_projects(user)] == ["sdk"]
        assert {each.name for each in identity.projects(tags="a")} == {"sdk"}
        assert {each.name for each in identity.users(limit=2)} >= {"admin", "demo", "sdk"}, (
            "pages are followed"
        )
        project.add_tag(identity, "b")
        assert sorted(project.fetch_tags(identity).tags) == ["a", "b"]
        assert identity.update_user(user, email="x@y").email == "x@y"
        identity.unassign_project_role_from_user(project, user, role)
        assert not identity.validate_user_has_project_role(project, user, role)
        identity.delete_user(user)
        identity.delete_project(project)
        assert identity.find_user("sdk") is None and identity.find_project("sdk") is None

    await as_user().sdk(administer)

    def use(cloud: Any) -> None:
        assert cloud.current_project.name == "demo"
        assert cloud.current_user_id == cloud.identity.get_user(cloud.current_user_id).id
        assert cloud.endpoint_for("compute") == "http://127.0.0.1:1/v2.1"

    await as_user("demo", DEMO_PASSWORD).sdk(use)
