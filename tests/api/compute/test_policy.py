"""Who may do what: Nova's rule names, their defaults, and the operator's policy.yaml."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kilonova.api.policy import Policy
from kilonova.api.policy_rules import CHECKS, RULES
from kilonova.api.resources import all_routes
from kilonova.errors import Failed, Forbidden
from kilonova.model.context import RequestContext
from kilonova.operations.cloud import Cloud
from tests.api.compute.asgi import ROLES, Api, Tokens
from tests.api.compute.conftest import PROJECT
from tests.api.compute.parts import server

HYPERVISORS = "os_compute_api:os-hypervisors:list"
SHOW = "os_compute_api:servers:show"
KIND = {check: kind for kind, check in CHECKS.items()}
ALLOWED = {
    "any": {*ROLES},
    "nobody": set(),
    "reader": {"admin", "manager", "member", "reader"},
    "member": {"admin", "manager", "member"},
    "manager": {"admin", "manager"},
    "admin": {"admin"},
    "service": {"admin", "service"},
    "owner-user": {*ROLES} - {"other"},
}


def context(who: str = "member", project: str | None = PROJECT, **more: Any) -> RequestContext:
    return RequestContext(request_id="req-1", user_id="user1", project_id=project, roles=ROLES[who], **more)


@pytest.mark.parametrize("kind", list(CHECKS))
async def test_the_defaults_of_each_kind_of_rule(kind: str, tokens: Tokens) -> None:
    policy = Policy()
    names = [name for name, check in RULES.items() if KIND[check] == kind]
    assert names
    own = {"project_id": PROJECT, "user_id": "user1"}
    for name in names:
        allowed = {who for who in ROLES if policy.allows(await tokens.validate(who, "req-1"), name, own)}
        assert allowed == ALLOWED[kind], name


def test_every_route_has_a_rule_or_is_open_to_all() -> None:
    open_to_all = {"/flavors", "/flavors/detail", "/flavors/{flavor_id}", "/versions/{id}"}
    for route in all_routes():
        if route.policy is None:
            assert (route.method, route.path in open_to_all) == ("GET", True), route.path
        else:
            assert route.policy in RULES, route.path
    with pytest.raises(KeyError):
        Policy().allows(context(), "os_compute_api:no-such-rule")


async def test_the_file_says_who_may(api: Api, policy_file: Path) -> None:
    async def statuses(who: str) -> tuple[int, int]:
        listed = await api("GET", "/os-services", who=who)
        zones = await api("GET", "/os-availability-zone", who=who)
        return listed.status, zones.status

    assert await statuses("member") == (403, 200)
    rule = "os_compute_api:os-services:list"
    policy_file.write_text(f'"{rule}": "role:member"\n"os_compute_api:os-availability-zone:list": "!"\n')
    assert await statuses("member") == (200, 403)  # taken over without a restart
    assert await statuses("reader") == (403, 403)
    assert await statuses("admin") == (200, 403)  # its administrators are members as well
    refused = await api("GET", "/os-services", who="reader")
    assert refused.fault == f"Policy doesn't allow {rule} to be performed."
    assert list(refused.json) == ["forbidden"]
    policy_file.write_text(json.dumps({"ops": "role:service", rule: "rule:ops or user_id:user1"}))
    assert await statuses("service") == (200, 200)
    assert await statuses("reader") == (200, 200)
    assert await statuses("other") == (403, 200)
    policy_file.unlink()
    assert await statuses("member") == (403, 200)


async def test_rules_of_base_may_be_changed(api: Api, policy_file: Path) -> None:
    policy_file.write_text('"context_is_admin": "role:manager"\n')
    assert (await api("GET", "/os-services", who="manager")).status == 200
    assert (await api("GET", "/os-services", who="reader")).status == 403


async def test_rules_about_what_an_answer_shows(cloud: Cloud, api: Api, policy_file: Path) -> None:
    made = await server(cloud, PROJECT)
    path = f"/servers/{made.uuid}"

    async def shows(who: str) -> bool:
        shown = (await api("GET", path, v=60, who=who)).json["server"]
        return "OS-EXT-SRV-ATTR:host" in shown

    assert (await shows("admin"), await shows("member")) == (True, False)
    policy_file.write_text('"os_compute_api:os-extended-server-attributes": "role:reader"\n')
    assert (await shows("admin"), await shows("member")) == (True, True)


async def test_a_file_with_a_fault_leaves_the_rules_as_they_are(api: Api, policy_file: Path) -> None:
    policy_file.write_text(f'"{HYPERVISORS}": "!"\n')
    assert (await api("GET", "/os-availability-zone/detail", who="admin")).status == 200
    policy_file.write_text('"os_compute_api:os-availability-zone:list": "!"\n  - {\n')
    for _ in range(2):  # not only at the first look
        assert (await api("GET", "/os-availability-zone", who="member")).status == 200
    policy_file.write_text('- "a list"\n')
    assert (await api("GET", "/os-availability-zone", who="member")).status == 200
    policy_file.write_text('"os_compute_api:os-availability-zone:list": "!"\n')
    assert (await api("GET", "/os-availability-zone", who="member")).status == 403


def test_a_file_with_a_fault_stops_the_start(policy_file: Path) -> None:
    for content in ('"a": [\n', "- x\n", '"a": {"b": "c"}\n', b"\xff\xfe\x00"):
        policy_file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(Failed, match=str(policy_file)):
            Policy(policy_file)


def test_a_check_that_cannot_be_read_allows_nobody(policy_file: Path) -> None:
    for check in ("role:", "rule:no_such_rule", "((", "and", "project_id:%(project_id"):
        policy_file.write_text(json.dumps({HYPERVISORS: check}))
        assert not Policy(policy_file).allows(context("admin"), HYPERVISORS), check
    policy_file.write_text(json.dumps({HYPERVISORS: "rule:a", "a": "rule:b", "b": "rule:a"}))
    assert not Policy(policy_file).allows(context("admin"), HYPERVISORS)


def test_what_was_asked_of_one_is_not_told_another() -> None:
    policy = Policy()
    mine, others = ({"project_id": each, "user_id": "user1"} for each in (PROJECT, "another"))
    for _ in range(2):  # the second time from memory
        assert policy.allows(context("reader"), SHOW)
        assert policy.allows(context("reader"), SHOW, mine)
        assert not policy.allows(context("reader"), SHOW, others)
        assert policy.allows(context("reader", project="another"), SHOW, others)
        assert not policy.allows(context("nobody"), SHOW, mine)
        assert policy.allows(context("admin"), SHOW, others)
    with pytest.raises(Forbidden):
        policy.enforce(context("reader"), SHOW, others)


def test_tokens_of_no_project() -> None:
    policy = Policy()
    own = {"project_id": PROJECT, "user_id": "user1"}
    assert not policy.allows(context("reader", project=None), SHOW, own)
    assert not policy.allows(context("admin", project=None, system_scope=True), SHOW, own)
    assert not policy.allows(context("reader", project=None, domain_id="default"), SHOW)


def test_an_operators_rule_may_ask_a_server_and_only_then_is_that_code_loaded(tmp_path: Path) -> None:
    code = "import sys, kilonova.api.policy as p, pathlib; p.Policy({}); print('requests' in sys.modules)"
    file = tmp_path / "policy.yaml"
    file.write_text(f'"{SHOW}": "http://127.0.0.1:1/%(project_id)s"')
    for path, loaded in (("None", "False"), (f"pathlib.Path({str(file)!r})", "True")):
        ran = subprocess.run(
            [sys.executable, "-c", code.format(path)], capture_output=True, text=True, check=True
        )
        assert ran.stdout.strip() == loaded
