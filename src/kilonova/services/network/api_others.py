"""What clients look at besides the resources: extensions, zones, agents, and lists of what is not offered."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.db import network_addresses as addresses
from kilonova.db import network_networks as networks
from kilonova.db.network_networks import Joined
from kilonova.model.context import RequestContext
from kilonova.services.network import ranges
from kilonova.services.network.api_lists import only
from kilonova.services.network.api_resource import Handler
from kilonova.services.network.auto import auto_network
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.faults import (
    ExtensionNotFound,
    HTTPNotFound,
    NetworkNotFound,
    PolicyNotAuthorized,
)
from kilonova.services.network.networks import changeable_network, delete_network
from kilonova.services.network.work import Work, privileged
from kilonova.web.json import JsonResponse

EXTENSIONS = {
    "allowed-address-pairs": "Allowed Address Pairs",
    "auto-allocated-topology": "Auto Allocated Topology Services",
    "availability_zone": "Availability Zone",
    "binding": "Port Binding",
    "binding-extended": "Port Bindings Extended",
    "empty-string-filtering": "Empty String Filtering Extension",
    "external-net": "Neutron external network",
    "filter-validation": "Filter parameters validation",
    "ip-substring-filtering": "IP address substring filtering",
    "net-mtu": "Network MTU",
    "net-mtu-writable": "Network MTU (writable)",
    "network-ip-availability": "Network IP Availability",
    "pagination": "Pagination support",
    "port-security": "Port Security",
    "project-id": "project_id field enabled",
    "provider": "Provider Network",
    "quota_details": "Quota details management support",
    "quotas": "Quota management support",
    "security-group": "security-group",
    "sorting": "Sorting support",
    "standard-attr-description": "standard-attr-description",
    "standard-attr-revisions": "Resource revision numbers",
    "standard-attr-tag": "Tag support for resources with standard attribute",
    "standard-attr-timestamp": "Resource timestamps",
}
"""What is truly there, by the alias that clients branch on, with Neutron's name for it."""

ABSENT = (
    "floatingips",
    "routers",
    "subnetpools",
    "trunks",
    "address-scopes",
    "address-groups",
    "rbac-policies",
    "network_segment_ranges",
    "service-providers",
    "flavors",
    "segments",
    "qos/policies",
    "qos/rule-types",
    "metering/metering-labels",
    "local_ips",
    "ndp_proxies",
    "log/logs",
)
"""Lists that clients ask for; nothing of these kinds can be made here."""


def _extension(alias: str) -> dict[str, Any]:
    return {
        "alias": alias,
        "name": EXTENSIONS[alias],
        "description": EXTENSIONS[alias],
        "updated": "2026-01-01T00:00:00-00:00",
        "links": [],
    }


class Others:
    """The small endpoints."""

    def __init__(self, network: BuiltinNetwork) -> None:
        self.network = network

    async def extensions(self, request: Request, context: RequestContext) -> Response:
        return JsonResponse({"extensions": [_extension(alias) for alias in EXTENSIONS]})

    async def extension(self, request: Request, context: RequestContext) -> Response:
        alias = request.path_params["alias"]
        if alias not in EXTENSIONS:
            raise ExtensionNotFound(alias)
        return JsonResponse({"extension": _extension(alias)})

    async def agents(self, request: Request, context: RequestContext) -> Response:
        """None: the hosts' layer-2 agents are part of this process or of compute's, and not registered."""
        if not privileged(context):
            raise PolicyNotAuthorized("(rule:get_agent) is disallowed by policy")
        return JsonResponse({"agents": []})

    async def zones(self, request: Request, context: RequestContext) -> Response:
        zone = {"name": self.network.options.default_zone, "resource": "network", "state": "available"}
        return JsonResponse({"availability_zones": [zone]})

    async def availabilities(self, request: Request, context: RequestContext) -> Response:
        if not privileged(context):
            raise PolicyNotAuthorized("(rule:get_network_ip_availability) is disallowed by policy")
        wanted = {
            name: set(request.query_params.getlist(name))
            for name in ("network_id", "network_name", "tenant_id", "project_id", "ip_version")
            if name in request.query_params
        }
        version = wanted.pop("ip_version", None)

        def read(work: Work) -> list[dict[str, Any]]:
            found = networks.all_with_subnets(work.tx)
            used = addresses.used_by_subnet(work.tx, [each.network.id for each in found])
            return [_availability(each, used, version) for each in found]

        views = await self.network.read(read)
        kept = [view for view in views if all(view[name] in given for name, given in wanted.items())]
        return JsonResponse({"network_ip_availabilities": kept})

    async def availability(self, request: Request, context: RequestContext) -> Response:
        wanted = request.path_params["id"]
        if not privileged(context):
            raise PolicyNotAuthorized("(rule:get_network_ip_availability) is disallowed by policy")

        def read(work: Work) -> dict[str, Any]:
            found = networks.with_subnets(work.tx, wanted)
            if found is None:
                raise NetworkNotFound(wanted)
            return _availability(found, addresses.used_by_subnet(work.tx, [wanted]), None)

        return JsonResponse({"network_ip_availability": await self.network.read(read)})

    async def topology(self, request: Request, context: RequestContext) -> Response:
        """The project's own network, which is made when it is asked for; a dry run only says that it can."""
        project_id = request.path_params["project"]
        self._check_project(context, project_id)
        fields = frozenset(request.query_params.getlist("fields"))
        if "dry-run" in fields:
            view = {"id": "dry-run=pass", "tenant_id": project_id, "project_id": project_id}
            return JsonResponse({"auto_allocated_topology": view})
        made = await self.network.write(lambda work: auto_network(work, project_id).network)
        view = {"id": made.id, "tenant_id": project_id, "project_id": project_id}
        return JsonResponse({"auto_allocated_topology": only(view, fields)})

    async def delete_topology(self, request: Request, context: RequestContext) -> Response:
        project_id = request.path_params["project"]
        self._check_project(context, project_id)

        def write(work: Work) -> None:
            found = networks.auto_network(work.tx, project_id)
            if found is None:
                raise HTTPNotFound(f"Auto allocated topology of project {project_id} could not be found.")
            changeable_network(work, context, found)
            delete_network(work, context, found)

        await self.network.write(write)
        return Response(status_code=204)

    def _check_project(self, context: RequestContext, project_id: str) -> None:
        if project_id != context.project_id and not privileged(context):
            raise PolicyNotAuthorized(f"The topology of project {project_id} is for its own members.")

    def routes(self, guard: Any) -> list[Route]:
        table: list[tuple[str, str, Handler]] = [
            ("/extensions", "GET", self.extensions),
            ("/extensions/{alias}", "GET", self.extension),
            ("/agents", "GET", self.agents),
            ("/availability_zones", "GET", self.zones),
            ("/network-ip-availabilities", "GET", self.availabilities),
            ("/network-ip-availabilities/{id}", "GET", self.availability),
            ("/auto-allocated-topology/{project}", "GET", self.topology),
            ("/auto-allocated-topology/{project}", "DELETE", self.delete_topology),
        ]
        for plural in ABSENT:
            table.append((f"/{plural}", "GET", _empty(plural)))
            table.append((f"/{plural}", "POST", _refuse(plural)))
            table.append((f"/{plural}/{{id}}", "GET", _refuse(plural)))
        return [Route("/v2.0" + path, guard(handler), methods=[method]) for path, method, handler in table]


def _empty(plural: str) -> Handler:
    key = plural.rpartition("/")[2].replace("-", "_")

    async def handle(request: Request, context: RequestContext) -> Response:
        return JsonResponse({key: []})

    return handle


def _refuse(plural: str) -> Handler:
    async def handle(request: Request, context: RequestContext) -> Response:
        raise HTTPNotFound(
            f"The resource could not be found: this network service has no {plural}. "
            "GET /v2.0/extensions lists what it has."
        )

    return handle


def _availability(joined: Joined, used: dict[str, int], version: set[str] | None) -> dict[str, Any]:
    subnets = [
        {
            "subnet_id": subnet.id,
            "subnet_name": subnet.name,
            "cidr": subnet.cidr,
            "ip_version": subnet.ip_version,
            "total_ips": ranges.size_of(subnet.pools),
            "used_ips": used.get(subnet.id, 0),
        }
        for subnet in joined.subnets
        if version is None or str(subnet.ip_version) in version
    ]
    network = joined.network
    return {
        "network_id": network.id,
        "network_name": network.name,
        "tenant_id": network.project_id,
        "project_id": network.project_id,
        "total_ips": sum(int(str(each["total_ips"])) for each in subnets),
        "used_ips": sum(int(str(each["used_ips"])) for each in subnets),
        "subnet_ip_availability": subnets,
    }
