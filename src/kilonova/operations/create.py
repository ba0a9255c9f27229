"""Accepting a create request: look-ups and checks first, then one write that makes the servers, books the
quota and writes the operations down.  The ids in the answer are durable.
"""

from __future__ import annotations

from msgspec.structs import replace

from kilonova.db import flavors, instances, keypairs, quotas, server_groups
from kilonova.db.engine import Tx
from kilonova.db.lanes import Queued
from kilonova.errors import Invalid, OverQuota
from kilonova.model.context import RequestContext
from kilonova.model.flavor import Flavor
from kilonova.model.image import Image
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.states import GUARDS, Vm
from kilonova.operations import create_checks as checks
from kilonova.operations import create_in_cell
from kilonova.operations.cloud import Cloud
from kilonova.operations.create_steps import CREATE, CreateParams, request_for
from kilonova.operations.requests import CreateServer
from kilonova.resources.quota import fitting

MAX_NAME = 255
MAX_SERVERS = 1000  # of one request, which makes them in one transaction


class _Facts:
    """What one look into the database told."""

    def __init__(
        self, tx: Tx, context: RequestContext, request: CreateServer, defaults: dict[str, int]
    ) -> None:
        project = context.project_id
        assert project is not None
        self.flavor = flavors.show(tx, request.flavor_id)
        self.key = keypairs.show(tx, context.user_id, request.key_name) if request.key_name else None
        self.limits = quotas.effective_limits(tx, project, context.user_id, defaults)
        group = request.hints.get("group")
        self.group = None if group is None else server_groups.find(tx, str(group))


async def submit(cloud: Cloud, context: RequestContext, request: CreateServer) -> list[Instance]:
    """The servers, building.  Raises Invalid, Conflict, Forbidden or OverQuota, and makes nothing then."""
    if context.project_id is None:
        raise Invalid("A server belongs to a project: use a token that is scoped to one.")
    defaults = {name: int(str(value)) for name, value in cloud.settings.options["quota"].items()}
    facts = await cloud.db.read(lambda tx: _Facts(tx, context, request, defaults))
    flavor = checks.check_flavor(facts.flavor, request, context)
    if request.key_name and facts.key is None:
        raise Invalid("Invalid key_name provided.")
    checks.check_user_data(request.user_data)
    checks.check_group(request.hints, facts.group, context)
    checks.check_metadata(request.metadata, facts.limits["metadata_items"])
    checks.check_files(
        request.personality, facts.limits["injected_files"], facts.limits["injected_file_content_bytes"]
    )
    zone, host, node = checks.parse_zone(
        request.availability_zone, cloud.settings.text("default_schedule_zone") or None
    )
    await checks.check_zone(cloud, zone, bool(host or node))
    await checks.check_requested_host(cloud, request)
    image = await checks.check_image(cloud, context, request, flavor)
    cloud.claims.wanted(flavor, image.properties)  # refuses what no host could give
    most = _most(request)
    count = await cloud.network.check(
        context, request.networks, request.security_groups, most, request.auto_network
    )
    if count < request.min_count:
        raise OverQuota(
            f"Maximum number of ports exceeded: {count} of {request.min_count} servers could have one."
        )
    params = _params(request, host, node)
    public_key = facts.key.public_key if facts.key else None

    def servers(number: int) -> list[Instance]:
        return _instances(cloud, context, request, flavor, image, zone, public_key, number)

    def book(tx: Tx) -> list[Instance]:
        made = servers(_book(tx, context, facts.limits, flavor, request.min_count, min(count, most)))
        if facts.group is not None:
            limit = facts.limits["server_group_members"]
            uuids = [instance.uuid for instance in made]
            server_groups.add_members(tx, facts.group.uuid, uuids, context.user_id, limit)
        return made

    def make(tx: Tx, cell: Cloud, made: list[Instance]) -> list[Instance]:
        made = [replace(instance, id=instances.insert(tx, instance)) for instance in made]
        for instance in made:
            known = {"instance": instance}
            cell.journal.submit(tx, context, CREATE, instance.uuid, "create", params, known)
        return made

    lane = f"quota {context.project_id}"
    if cloud.cells is None:
        return await cloud.db.write(Queued(lane, lambda tx: make(tx, cloud, book(tx))))
    cell = await create_in_cell.chosen(cloud.cells, request_for(cloud, servers(1)[0], params))
    return await create_in_cell.make(cloud.cells, cell, book, make, lane)


def _params(request: CreateServer, host: str | None, node: str | None) -> CreateParams:
    return CreateParams(
        networks=request.networks,
        auto_network=request.auto_network,
        forced_host=host,
        forced_node=node,
        requested_host=request.host,
        requested_node=request.hypervisor_hostname,
        files=request.personality,
    )


def _most(request: CreateServer) -> int:
    """How many servers there may be at most; several cannot share one port or one address (API-68)."""
    if request.min_count > MAX_SERVERS:
        raise Invalid(f"One request makes at most {MAX_SERVERS} servers: min_count is {request.min_count}.")
    if request.max_count < 2 or not request.networks:
        return min(request.max_count, MAX_SERVERS)
    if any(network.port_id for network in request.networks):
        raise Invalid(
            "Unable to launch multiple instances with a single configured port ID. Please launch "
            "your instance one by one with different ports."
        )
    if any(network.fixed_ip for network in request.networks):
        raise Invalid("Invalid fixed IP and maximum count: an address can be given to one server only.")
    return min(request.max_count, MAX_SERVERS)


def _book(
    tx: Tx, context: RequestContext, limits: quotas.Limits, flavor: Flavor, least: int, most: int
) -> int:
    """Book quota for as many servers as there is room for (API-85).  Raises OverQuota below ``least``."""
    project, user = str(context.project_id), context.user_id
    one = {"instances": 1, "cores": flavor.vcpus, "ram": flavor.memory_mb}
    number = most
    while True:
        try:
            quotas.reserve(
                tx, project, user, limits, **{name: number * amount for name, amount in one.items()}
            )
        except OverQuota:
            fits = fitting(limits.project, quotas.usage(tx, project), one, least, most)
            fits = min(fits, fitting(limits.of_user, quotas.usage(tx, project, user), one, least, most))
            if number == least:
                raise
            number = max(least, min(fits, number - 1))  # less than before, so that this ends
        else:
            return number


def _instances(
    cloud: Cloud,
    context: RequestContext,
    request: CreateServer,
    flavor: Flavor,
    image: Image,
    zone: str | None,
    public_key: str | None,
    number: int,
) -> list[Instance]:
    now = cloud.clock.now()
    mode = image.properties.get("img_config_drive")
    drive = bool(request.config_drive or request.personality or mode == "mandatory")
    meta = image_meta(image)
    disk_config = checks.disk_config(request, image)
    reservation = "r-" + cloud.new_uuid().replace("-", "")[:8]
    result = []
    for index in range(number):
        uuid = cloud.new_uuid()
        suffix = f"-{index + 1}" if number > 1 else ""
        name = (request.name or f"Server {uuid}")[: MAX_NAME - len(suffix)] + suffix
        hostname = request.hostname or checks.sanitized_hostname(name, f"Server-{uuid}")
        result.append(
            Instance(
                uuid=uuid,
                project_id=str(context.project_id),
                user_id=context.user_id,
                reservation_id=reservation,
                launch_index=index,
                display_name=name,
                display_description=request.description,
                hostname=hostname + suffix if request.hostname else hostname,
                vm_state=Vm.BUILDING,
                task_state=GUARDS["create"].sets,
                availability_zone=zone,
                pinned_availability_zone=zone,
                flavor=flavor,
                image=meta,
                key_name=request.key_name,
                key_data=public_key,
                user_data=request.user_data,
                config_drive=drive or cloud.settings.flag("force_config_drive"),
                access_ip_v4=request.access_ip_v4,
                access_ip_v6=request.access_ip_v6,
                metadata=request.metadata,
                system_metadata={"disk_config": disk_config} if disk_config else {},
                tags=request.tags,
                hints=request.hints,
                security_groups=request.security_groups if request.networks != () else (),
                created_at=now,
                updated_at=now,
            )
        )
    return result


def image_meta(image: Image) -> ImageMeta:
    """The image as it is now, kept with the server."""
    return ImageMeta(
        id=image.id,
        name=image.name,
        disk_format=image.disk_format,
        container_format=image.container_format,
        size=image.size,
        min_disk=image.min_disk,
        min_ram=image.min_ram,
        checksum=image.checksum,
        hash_algo=image.hash_algo,
        hash_value=image.hash_value,
        properties=image.properties,
    )
