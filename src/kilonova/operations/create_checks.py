"""Whether a create request makes sense, before anything is written (inventory API-61 to API-91)."""

from __future__ import annotations

import base64
import binascii
import re

from kilonova.db.server_groups import ServerGroup
from kilonova.errors import Forbidden, Invalid, NotFound
from kilonova.model.context import RequestContext
from kilonova.model.flavor import Flavor
from kilonova.model.image import Image
from kilonova.operations.cloud import Cloud
from kilonova.operations.requests import CreateServer

MAX_USER_DATA = 65535  # characters of base64
MAX_FILE_PATH = 255
GIB = 1 << 30
_YES = frozenset({"1", "t", "true", "on", "y", "yes"})


def parse_zone(text: str | None, default: str | None) -> tuple[str | None, str | None, str | None]:
    """Zone, forced host, forced node of ``zone[:host[:node]]`` (API-61).  Raises Invalid."""
    parts = (text or "").split(":")
    if len(parts) > 3:
        raise Invalid(f"Invalid availability zone '{text}': use zone, zone:host or zone:host:node.")
    zone, host, node = (*parts, "", "")[:3]
    return zone or default, host or None, node or None


async def check_zone(cloud: Cloud, zone: str | None, forced: bool) -> None:
    """A named zone must have a host that is up and enabled (API-62).  Raises Invalid."""
    if zone is None or forced:
        return
    if not await cloud.scheduler.zone_is_open(zone):
        raise Invalid(f"The requested availability zone is not available: '{zone}'.")


async def check_requested_host(cloud: Cloud, request: CreateServer) -> None:
    """``host`` and ``hypervisor_hostname`` of 2.74 must exist (API-63).  Raises Invalid."""
    if request.host is None and request.hypervisor_hostname is None:
        return
    host, node = request.host, request.hypervisor_hostname
    knows_host, knows_node = await cloud.scheduler.knows(host, node)
    if not knows_host or not knows_node:
        raise Invalid(f"Compute host {node if knows_host else host} could not be found.")


def check_flavor(flavor: Flavor | None, request: CreateServer, context: RequestContext) -> Flavor:
    """Raises Invalid for a flavor that is not there, disabled, or of other projects (API-64)."""
    visible = flavor is not None and (
        flavor.is_public or context.is_admin or context.project_id in flavor.projects
    )
    if flavor is None or flavor.disabled or not visible:
        raise Invalid(f"Flavor {request.flavor_id} could not be found.")
    return flavor


async def check_image(cloud: Cloud, context: RequestContext, request: CreateServer, flavor: Flavor) -> Image:
    """The image, fit for the flavor (API-70, 72, 73, 75).  Raises Invalid or Forbidden."""
    if not request.image_id:
        raise Invalid("Invalid imageRef provided.")
    try:
        image = await cloud.image.show(context, request.image_id)
    except NotFound:
        raise Invalid(f"Image {request.image_id} could not be found.") from None
    if image.status != "active":
        raise Invalid(f"Image {image.id} is not active.")
    if not flavor.root_gb and not request.zero_disk:
        raise Forbidden("Only volume-backed servers are allowed for flavors with zero disk.")
    size = max(image.size, image.virtual_size or 0)
    check_fits(flavor, min_ram=image.min_ram, min_disk=image.min_disk, size=size)
    _check_properties(image, request)
    return image


def check_fits(flavor: Flavor, *, min_ram: int, min_disk: int, size: int) -> None:
    """An image that wants MiB, GiB and has bytes must fit a flavor.  Raises Invalid."""
    if flavor.memory_mb < min_ram:
        raise Invalid(
            f"Flavor's memory is too small for requested image: {flavor.memory_mb} MiB, {min_ram} needed."
        )
    if not flavor.root_gb:
        return
    if flavor.root_gb * GIB < size:
        raise Invalid(
            "Flavor's disk is too small for requested image. "
            f"Flavor disk is {flavor.root_gb * GIB} bytes, "
            f"image is {size} bytes."
        )
    if flavor.root_gb < min_disk:
        raise Invalid(
            "Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is "
            f"{flavor.root_gb * GIB} bytes, minimum size is {min_disk * GIB} bytes."
        )


def _check_properties(image: Image, request: CreateServer) -> None:
    if "cinder_encryption_key_id" in image.properties:
        raise Invalid(
            f"Image {image.id} is unacceptable: Direct booting of an image uploaded from an encrypted volume "
            "is unsupported."
        )
    if request.disk_config == "AUTO" and image.properties.get("auto_disk_config", "").lower() == "disabled":
        raise Invalid(
            f"Requested image {image.id} has automatic disk resize disabled: leave out OS-DCF:diskConfig."
        )
    mode = image.properties.get("img_config_drive")
    if mode not in (None, "optional", "mandatory"):
        raise Invalid(f"Image's config drive option '{mode}' is invalid.")


def disk_config(request: CreateServer, image: Image) -> str | None:
    """As asked for, or else as the image says; None: MANUAL, as nothing says otherwise (API-75)."""
    automatic = image.properties.get("auto_disk_config", "").strip().lower()
    return request.disk_config or ("AUTO" if automatic in _YES else None)


def check_group(hints: dict[str, object], found: ServerGroup | None, context: RequestContext) -> None:
    """The server group of a hint must be one of the project (API-88).  Raises Invalid."""
    wanted = hints.get("group")
    if wanted is not None and (found is None or found.project_id != context.project_id):
        raise Invalid(f"Instance group {wanted} could not be found.")


def check_user_data(text: str | None) -> None:
    """Base64 of at most 65535 characters (API-65).  Raises Invalid."""
    if text is None:
        return
    if len(text) > MAX_USER_DATA:
        raise Invalid(
            f"User data too large. User data must be no larger than {MAX_USER_DATA} bytes "
            "once base64 encoded."
        )
    try:
        base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("User data needs to be valid base 64.") from None


def check_metadata(metadata: dict[str, str], limit: int) -> None:
    """At most ``limit`` entries (API-86).  Raises Forbidden, as Nova does."""
    if 0 <= limit < len(metadata):
        raise Forbidden(f"Maximum number of metadata items exceeds {limit}")


def check_files(files: tuple[tuple[str, bytes], ...], count: int, size: int) -> None:
    """Injected files (API-86).  Raises Forbidden, as Nova does."""
    if 0 <= count < len(files):
        raise Forbidden("Personality file limit exceeded")
    for path, content in files:
        if len(path) > MAX_FILE_PATH:
            raise Forbidden(f"Personality file path exceeds maximum of {MAX_FILE_PATH}")
        if 0 <= size < len(content):
            raise Forbidden(f"Personality file content exceeds maximum of {size}")


def sanitized_hostname(name: str, fallback: str) -> str:
    """A host name made of a display name, as Nova makes it: at most 63 characters, ``fallback`` if none is
    left."""
    text = name.encode("ascii", "ignore").decode()
    text = re.sub(r"[ _]", "-", text)
    text = re.sub(r"[^\w.-]+", "", text).lower().strip(".-")
    text = re.sub(r"\.+", "-", text)
    return text[:63].strip("-") or fallback
