"""Whether a server may have another flavor, before anything is written (API-103)."""

from __future__ import annotations

from kilonova.db import flavors, hosts
from kilonova.errors import Conflict, Invalid
from kilonova.model.context import RequestContext
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Instance
from kilonova.operations.cloud import Cloud
from kilonova.operations.create_checks import check_fits
from kilonova.operations.leftovers import host_is_down

NO_RESIZE = "Server disk was unable to be resized because: "


async def flavor_for(
    cloud: Cloud, context: RequestContext, instance: Instance, flavor_id: str, disk_config: str | None
) -> Flavor:
    """The flavor, fit for the server.  Raises Invalid."""
    new = await cloud.top.read(lambda tx: flavors.show(tx, flavor_id))
    visible = new is not None and (new.is_public or context.is_admin or context.project_id in new.projects)
    if new is None or new.disabled or not visible:
        raise Invalid(f"Flavor {flavor_id} could not be found.")
    old, image = instance.flavor, instance.image
    if new.id == old.id:
        raise Invalid("When resizing, instances must change flavor!")
    if old.root_gb and not new.root_gb:
        raise Invalid(f"{NO_RESIZE}Resize to zero disk flavor is not allowed.")
    if new.root_gb < old.root_gb or new.ephemeral_gb < old.ephemeral_gb:
        raise Invalid(f"{NO_RESIZE}Unable to resize disk down.")
    if image is not None:
        check_fits(new, min_ram=image.min_ram, min_disk=image.min_disk, size=image.size)
        if disk_config == "AUTO" and image.properties.get("auto_disk_config", "").lower() == "disabled":
            raise Invalid(
                f"Requested image {image.id} has automatic disk resize disabled: leave out OS-DCF:diskConfig."
            )
    cloud.claims.wanted(new, image.properties if image else {})  # refuses what no host could give
    return new


async def check_source(cloud: Cloud, instance: Instance) -> None:
    """A server's files come from its host, which has to be up.  Raises Conflict."""
    if instance.host is not None and await host_is_down(cloud, instance.host):
        raise Conflict(f"Service is unavailable at this time: the host of instance {instance.uuid} is down.")


async def check_target(cloud: Cloud, instance: Instance, host: str, *, across: bool) -> None:
    """A host that is named must be there, and another one; in another cell only if the server may go
    ``across`` (API-104).  Raises Invalid."""
    if host == instance.host:
        raise Invalid("Cannot migrate to the host where the server exists.")
    known, _ = await cloud.scheduler.knows(host, None)
    found = await cloud.top.read(lambda tx: hosts.show(tx, host))
    elsewhere = found is not None and found.cell_uuid != cloud.cell_uuid
    if not known or (elsewhere and not across):
        raise Invalid(f"Compute host {host} could not be found.")
