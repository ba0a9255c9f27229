"""``POST /servers``: from the body to what the operation is asked for."""

from __future__ import annotations

import secrets

from kilonova.api.call import Answer, Call
from kilonova.api.schema.kinds import is_uuid
from kilonova.api.schema.servers import BlockDevice, CreateBody, NetworkRequest, ServerToCreate
from kilonova.errors import Invalid
from kilonova.model.port import RequestedNetwork
from kilonova.operations import create as create_operation
from kilonova.operations.requests import CreateServer

RULE = "os_compute_api:servers:create"
FORCED_HOST = f"{RULE}:forced_host"
DESTINATION = "compute:servers:create:requested_destination"

_PASSWORD_LENGTH = 12
_PASSWORD_LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


async def create(call: Call) -> Answer:
    body: CreateBody = call.body
    request = request_of(call, body)
    made = await create_operation.submit(call.cloud, call.context, request)
    first = made[0]
    if request.return_reservation_id:
        return Answer({"reservation_id": first.reservation_id})
    shown = {
        "id": first.uuid,
        "links": call.links_of("servers", first.uuid),
        "OS-DCF:diskConfig": first.system_metadata.get("disk_config", "MANUAL"),
        "security_groups": [{"name": name} for name in request.security_groups],
        "adminPass": body.server.admin_pass or new_password(),
    }
    return Answer({"server": shown}, headers=[(b"location", f"{call.links}/servers/{first.uuid}".encode())])


def new_password() -> str:
    """Without letters that look like others."""
    count = len(_PASSWORD_LETTERS)
    number = secrets.randbelow(count**_PASSWORD_LENGTH)  # one call of the system for all letters
    letters = []
    for _ in range(_PASSWORD_LENGTH):
        number, index = divmod(number, count)
        letters.append(_PASSWORD_LETTERS[index])
    return "".join(letters)


def request_of(call: Call, body: CreateBody) -> CreateServer:
    """The body in the words of the operation.  Raises Invalid or Forbidden."""
    server = body.server
    least, most = counts(server)
    hostname = server.domain_name or server.hostname
    if hostname and most > 1:
        raise Invalid("A hostname cannot be given to several servers: leave it out, or create them singly.")
    _check_destination(call, server)
    if server.trusted_image_certificates is not None:
        call.allow(f"{RULE}:trusted_certs")
        raise Invalid("This cloud does not verify image signatures: leave out trusted_image_certificates.")
    networks, automatic = networks_of(call, server)
    hints = {**(body.hints or {}), **(body.older_hints or {})}
    return CreateServer(
        name=server.name,
        flavor_id=server.flavor,
        image_id=image_of(call, server),
        networks=networks,
        auto_network=automatic,
        key_name=server.key_name,
        user_data=server.user_data,
        config_drive=server.config_drive,
        metadata=server.metadata or {},
        security_groups=groups_of(server),
        min_count=least,
        max_count=most,
        availability_zone=server.availability_zone,
        host=server.host,
        hypervisor_hostname=server.hypervisor_hostname,
        description=server.description,
        hostname=hostname,
        tags=tuple(dict.fromkeys(server.tags or ())),
        hints=hints,
        access_ip_v4=server.access_ipv4,
        access_ip_v6=server.access_ipv6,
        disk_config=server.disk_config,
        personality=tuple((file.path, file.contents) for file in server.personality or ()),
        return_reservation_id=bool(server.return_reservation_id),
        zero_disk=call.may(f"{RULE}:zero_disk_flavor"),
    )


def counts(server: ServerToCreate) -> tuple[int, int]:
    """The least and the most servers to make.  Raises Invalid."""
    least = server.min_count or 1
    most = server.max_count or least
    if least > most:
        raise Invalid("min_count must be <= max_count")
    return least, most


def groups_of(server: ServerToCreate) -> tuple[str, ...]:
    names = dict.fromkeys(group.name for group in server.security_groups or ())
    return tuple(names) or ("default",)


def _check_destination(call: Call, server: ServerToCreate) -> None:
    """Who names a host: in the zone, which forces it, or on its own, which asks the scheduler."""
    target = {"project_id": call.context.project_id, "user_id": call.context.user_id}
    parts = (server.availability_zone or "").split(":")
    forced = len(parts) > 1
    if len(parts) > 3:
        raise Invalid(f"Invalid availability zone '{server.availability_zone}': use zone:host:node.")
    if forced:
        call.allow(FORCED_HOST, target | {"availability_zone": server.availability_zone})
    if server.host is not None or server.hypervisor_hostname is not None:
        call.allow(DESTINATION, target)
        if forced:
            raise Invalid("Destination is given both in the availability zone and by host: use one of them.")


def networks_of(call: Call, server: ServerToCreate) -> tuple[tuple[RequestedNetwork, ...] | None, bool]:
    """The networks, None if nothing was said of them, and whether they are to be made (``auto``)."""
    asked = server.networks if call.version >= 37 else server.networks_before
    if asked is None:
        return None, False
    if isinstance(asked, str):
        return (None, True) if asked == "auto" else ((), False)
    if asked:
        call.allow(f"{RULE}:attach_network")
    entries = tuple(_network(entry) for entry in asked)
    ports = [entry.port_id for entry in entries if entry.port_id]
    if len(set(ports)) != len(ports):
        raise Invalid("Duplicate networks: a port can be given once only.")
    return entries or None, False


def _network(entry: NetworkRequest) -> RequestedNetwork:
    if entry.port is not None:
        if entry.fixed_ip is not None:
            raise Invalid(
                f"Specified Fixed IP '{entry.fixed_ip}' cannot be used with port '{entry.port}': "
                "the two cannot be specified together."
            )
        return RequestedNetwork(port_id=entry.port, tag=entry.tag)
    if entry.uuid is None:
        raise Invalid("Bad network format: missing 'uuid'")
    if not is_uuid(entry.uuid):
        raise Invalid(f"Bad networks format: network uuid is not in proper format ({entry.uuid})")
    return RequestedNetwork(network_id=entry.uuid, fixed_ip=entry.fixed_ip, tag=entry.tag)


def image_of(call: Call, server: ServerToCreate) -> str:
    """The image to boot from, wherever the body names it.  Raises Invalid."""
    image = server.image or None
    if server.old_block_devices or server.block_devices:
        call.allow(f"{RULE}:attach_volume")
    if server.old_block_devices and server.block_devices:
        raise Invalid("block_device_mapping and block_device_mapping_v2 cannot be given together.")
    if server.old_block_devices:
        raise Invalid("Servers do not boot from volumes here: leave out block_device_mapping.")
    for device in server.block_devices or ():
        named = _boot_image(device)
        if image is not None and named != image:
            raise Invalid(f"Two images to boot from are named: imageRef {image}, block device {named}.")
        image = named
    if len(server.block_devices or ()) > 1:
        raise Invalid("Block Device Mapping is Invalid: Boot sequence for the instance is not valid.")
    if image is None:
        raise Invalid("Missing imageRef attribute")
    return image


def _boot_image(device: BlockDevice) -> str:
    """The one form that is no volume: the image's copy on the host's own disk, booted first."""
    form = (device.source_type, device.destination_type)
    if form != ("image", "local") or device.volume_id or device.snapshot_id:
        raise Invalid(
            "Servers do not boot from volumes here: a block device must have source_type image and "
            "destination_type local. A volume can be attached to a server that is there."
        )
    if device.boot_index != 0:
        raise Invalid("Block Device Mapping is Invalid: the image's disk must have boot_index 0.")
    identity = device.uuid or device.image_id
    if identity is None or not is_uuid(identity):
        raise Invalid("Block Device Mapping is Invalid: the device needs the uuid of an image.")
    return identity
