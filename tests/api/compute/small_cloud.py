"""A Compute API with just enough behind it for resources other than servers, and a client for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

import pytest
import yaml

from kilonova.api.app import app
from kilonova.api.policy import Policy
from kilonova.db import hosts, instances, quotas
from kilonova.db.engine import Database, Tx
from kilonova.db.quotas import Limits
from kilonova.errors import Conflict, Unauthenticated, Unreachable
from kilonova.model.context import RequestContext
from kilonova.model.flavor import Flavor
from kilonova.model.host import Host, HostReport, Inventory
from kilonova.model.instance import Instance
from kilonova.operations.cloud import Cloud
from kilonova.services.placement.port import ProviderSummary
from kilonova.settings import Settings
from kilonova.testing.clock import VirtualClock
from kilonova.testing.embedded import default_options
from tests.conftest import db

__all__ = ["db"]  # the fixture that has a database of each kind

ADMIN, MANAGER, MEMBER, READER, OTHER = "admin", "manager", "member", "reader", "other"
PROJECTS = {ADMIN: "padmin", MANAGER: "p1", MEMBER: "p1", READER: "p1", OTHER: "p2"}
ROLES = {
    ADMIN: {"admin", "member", "reader"},
    MANAGER: {"manager", "member", "reader"},
    MEMBER: {"member", "reader"},
    READER: {"reader"},
    OTHER: {"member", "reader"},
}
NO_LIMITS = Limits({}, {})


class Identities:
    async def validate(self, token: str, request_id: str) -> RequestContext:
        if token not in PROJECTS:
            raise Unauthenticated("The request you have made requires authentication.")
        return RequestContext(
            request_id=request_id,
            user_id=f"u-{token}",
            project_id=PROJECTS[token],
            roles=frozenset(ROLES[token]),
        )

    async def project_exists(self, project_id: str) -> bool:
        return project_id in PROJECTS.values()


@dataclass
class Providers:
    """The part of placement that lists of hypervisors, deletions of services and aggregates ask."""

    found: list[ProviderSummary] = field(default_factory=list)
    aggregates: set[tuple[str, str]] = field(default_factory=set)  # provider, aggregate
    traits: set[tuple[str, str]] = field(default_factory=set)  # provider, trait
    broken: bool = False

    async def providers(self) -> list[ProviderSummary]:
        return self.found

    async def set_aggregate(self, uuid: str, aggregate: str, member: bool) -> None:
        if self.broken:
            raise Unreachable("placement does not answer")
        change = self.aggregates.add if member else self.aggregates.discard
        change((uuid, aggregate))

    async def set_trait(self, uuid: str, trait: str, present: bool) -> None:
        if self.broken:
            raise Unreachable("placement does not answer")
        change = self.traits.add if present else self.traits.discard
        change((uuid, trait))

    async def remove(self, uuid: str) -> None:
        if any(one.uuid == uuid and any(one.used.values()) for one in self.found):
            raise Conflict(f"Unable to delete resource provider {uuid}: it has allocations.")
        self.found = [one for one in self.found if one.uuid != uuid]


@dataclass
class View:
    """A scheduler that only counts how often it was told to look again."""

    forgotten: int = 0

    def forget(self) -> None:
        self.forgotten += 1


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def message(self) -> str:
        (fault,) = self.json.values()
        assert fault["code"] == self.status
        return str(fault["message"])


class SmallCloud:
    """The API on a database, without a network or a scheduler, and requests to it."""

    def __init__(self, db: Database, tmp_path: Path) -> None:
        self.db = db
        self.clock = VirtualClock()
        self.placement = Providers()
        self.scheduler = View()
        self.numbers = 0
        options = default_options()
        options["DEFAULT"]["host"] = "controller"
        identities = Identities()
        absent: Any = None
        self.cloud = Cloud(
            settings=Settings(state_dir=tmp_path, options=options),
            clock=self.clock,
            new_uuid=self.new_uuid,
            db=db,
            identity=cast("Any", identities),
            image=absent,
            network=absent,
            placement=cast("Any", self.placement),
            volume=absent,
            hosts=absent,
            scheduler=cast("Any", self.scheduler),
            journal=absent,
            config_drive=absent,
        )
        self.app = app(self.cloud, cast("Any", identities), Policy())

    def new_uuid(self) -> str:
        self.numbers += 1
        return f"00000000-0000-4000-8000-{self.numbers:012}"

    def option(self, name: str, value: object, group: str = "DEFAULT") -> None:
        self.cloud.settings.options[group][name] = value

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        version: int | None = None,
        token: str = ADMIN,
        raw: bytes | None = None,
    ) -> Reply:
        address, _, query = path.partition("?")
        headers = [(b"host", b"cloud:8774"), (b"x-auth-token", token.encode())]
        if version is not None:
            headers.append((b"openstack-api-version", f"compute 2.{version}".encode()))
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        if content:
            headers.append((b"content-type", b"application/json"))
        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "path": "/v2.1" + address,
            "raw_path": quote("/v2.1" + address).encode(),
            "query_string": query.encode(),
            "headers": headers,
            "server": ("cloud", 8774),
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], found, b"".join(part.get("body", b"") for part in sent[1:]))

    async def get(self, path: str, *, version: int | None = None, token: str = ADMIN) -> Any:
        """The JSON of a 200."""
        reply = await self("GET", path, version=version, token=token)
        assert reply.status == 200, reply.raw
        return reply.json

    async def follow(self, links: list[dict[str, str]], **how: Any) -> Any:
        """The page that a ``next`` link leads to."""
        (link,) = links
        assert link["rel"] == "next"
        parts = urlsplit(link["href"])
        assert f"{parts.scheme}://{parts.netloc}" == "http://cloud:8774"
        return await self.get(f"{parts.path.removeprefix('/v2.1')}?{parts.query}", **how)

    async def host(self, name: str, *, node: str | None = None, used: int = 0, **more: Any) -> Host:
        """A host that has just reported, and its provider with ``used`` of each resource."""
        inventories = {
            "VCPU": Inventory(total=8, allocation_ratio=4.0),
            "MEMORY_MB": Inventory(total=16384, reserved=512),
            "DISK_GB": Inventory(total=100),
        }
        report = HostReport(
            host=name,
            compute_id=node or self.new_uuid(),
            hypervisor_hostname=f"{name}.example",
            hypervisor_type="QEMU",
            hypervisor_version=7002009,
            host_ip="192.0.2.1",
            inventories=inventories,
            cpu_info={"arch": "x86_64"},
            **{"started_at": self.clock.now() - 93_784_000_000, **more},
        )
        host = await self.db.write(lambda tx: hosts.upsert(tx, report, self.clock.now(), self.new_uuid))
        self.placement.found.append(
            ProviderSummary(
                uuid=host.compute_id,
                name=host.hypervisor_hostname,
                generation=1,
                inventories=inventories,
                used=dict.fromkeys(inventories, used),
            )
        )
        return host

    async def server(self, project: str = "p1", user: str = "u-member", **more: Any) -> Instance:
        """A living server, in the database alone, counted in the quota."""
        flavor = Flavor(id=1, flavorid="1", name="m1.tiny", vcpus=2, memory_mb=512, root_gb=1, ephemeral_gb=3)
        values = {
            "flavor": flavor,
            "vm_state": "active",
            "launched_at": self.clock.now(),
            "created_at": self.clock.now(),
            **more,
        }
        instance = Instance(
            uuid=self.new_uuid(),
            project_id=project,
            user_id=user,
            display_name=f"server-{self.numbers}",
            **values,
        )

        def write(tx: Tx) -> None:
            instances.insert(tx, instance)
            quotas.reserve(tx, project, user, NO_LIMITS, instances=1, cores=2, ram=512)

        await self.db.write(write)
        return instance

    async def gone(self, server: Instance) -> None:
        """The server, deleted now."""
        flavor, now = server.flavor, self.clock.now()

        def write(tx: Tx) -> None:
            assert instances.mark_deleted(tx, server.uuid, now)
            quotas.give_back(
                tx, server.project_id, server.user_id, instances=1, cores=flavor.vcpus, ram=flavor.memory_mb
            )

        await self.db.write(write)


@pytest.fixture(name="cloud")
async def _cloud(db: Database, tmp_path: Path) -> SmallCloud:
    return SmallCloud(db, tmp_path)


cloud = _cloud


@cache
def facts() -> dict[str, dict[str, str]]:
    return cast("Any", yaml.safe_load((Path(__file__).parent / "fields_other.yaml").read_text()))


_RANGE = re.compile(r"2\.(\d+)-(?:2\.(\d+))?")


def _within(ranges: str, version: int) -> bool:
    return any(
        int(first) <= version <= (int(last) if last else 104) for first, last in _RANGE.findall(ranges)
    )


def bands(*routes: str, first: int = 1, last: int = 104) -> list[int]:
    """The microversions at which something about these answers changes, and those just before."""
    points = {first, last}
    for route in routes:
        for text in facts()[route].values():
            for begin, end in _RANGE.findall(text):
                points |= {int(begin) - 1, int(begin)}
                points |= {int(end), int(end) + 1} if end else set()
    return sorted(point for point in points if first <= point <= last)


def _paths(value: Any, at: str = "") -> Iterable[str]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, f"{at}[]") if isinstance(inner, dict) else ()


def _matcher(names: Iterable[str]) -> Callable[[str], bool]:
    forms = [re.compile(re.escape(name).replace(r"\*", r"[^\[\]]+")) for name in names]
    return lambda path: any(form.fullmatch(path) for form in forms)


def check_keys(route: str, version: int, answer: Any) -> None:
    """The answer has the keys that the facts name for this microversion, and no others."""
    known = facts()[route]
    existing = [name for name, text in known.items() if _within(text.partition("required")[0], version)]
    allowed = _matcher(existing)
    seen = {path for path in _paths(answer) if not path.endswith("[]")}
    assert not [path for path in seen if not allowed(path)], (route, version)
    for name in existing:
        ranges, required, own = known[name].partition("required")
        if not required or "*" in name or not _within(own or ranges, version):
            continue
        for holder in _holders(answer, name.split(".")[:-1]):
            assert name.rpartition(".")[2] in holder, (route, version, name)


def _holders(value: Any, way: list[str]) -> Iterable[dict[str, Any]]:
    """The objects that a dotted path of keys leads to."""
    if not way:
        yield value
        return
    key = way[0]
    if key.endswith("[]"):
        for inner in value.get(key[:-2], ()):
            yield from _holders(inner, way[1:])
    elif isinstance(value.get(key), dict):
        yield from _holders(value[key], way[1:])
