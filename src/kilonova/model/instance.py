"""Servers, which Nova calls instances inside."""

from __future__ import annotations

import msgspec

from kilonova.model.flavor import Flavor
from kilonova.model.port import Vif
from kilonova.model.volume import Attachment


def instance_name(template: str, number: int, uuid: str) -> str:
    """What a server is called in the hypervisor, by Nova's ``instance_name_template``.

    The template has one number (``instance-%08x``) or names: ``%(uuid)s``, ``%(id)d``.  Raises ValueError for
    one that makes no name.
    """
    try:
        name = template % ({"id": number, "uuid": uuid} if "%(" in template else number)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"'{template}' is no template of names: {error}") from error
    if name == template or not name.strip():
        raise ValueError(f"'{template}' gives every server the same name")
    return name


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why an operation failed, as shown with a server in ERROR; ``details`` are for administrators."""

    code: int
    message: str
    created: int
    details: str = ""


class ImageMeta(msgspec.Struct, frozen=True, kw_only=True):
    """The image as it was when the server was made."""

    id: str
    name: str | None = None
    disk_format: str = "qcow2"
    container_format: str = "bare"
    size: int = 0
    min_disk: int = 0
    min_ram: int = 0
    checksum: str | None = None
    hash_algo: str | None = None
    hash_value: str | None = None
    properties: dict[str, str] = {}


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One server.

    Operations own ``vm_state`` and ``task_state``; the agent of its host owns ``power_state``, under
    ``power_generation``.  ``version`` rises with every change of the row.
    """

    id: int = 0
    uuid: str
    version: int = 1
    project_id: str
    user_id: str
    reservation_id: str = ""
    launch_index: int = 0
    display_name: str
    display_description: str | None = None
    hostname: str = ""
    vm_state: str
    task_state: str | None = None
    power_state: int = 0
    power_generation: int = 0
    progress: int = 0
    host: str | None = None
    node: str | None = None
    availability_zone: str | None = None
    pinned_availability_zone: str | None = None
    flavor: Flavor
    image: ImageMeta | None = None
    key_name: str | None = None
    key_data: str | None = None
    user_data: str | None = None
    config_drive: bool = False
    locked: str | None = None  # who locked it: "owner" or "admin"
    locked_reason: str | None = None
    access_ip_v4: str | None = None
    access_ip_v6: str | None = None
    root_device_name: str | None = None
    metadata: dict[str, str] = {}
    system_metadata: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    hints: dict[str, object] = {}
    security_groups: tuple[str, ...] = ()
    vifs: tuple[Vif, ...] = ()
    volumes: tuple[Attachment, ...] = ()
    fault: Fault | None = None
    created_at: int = 0
    updated_at: int | None = None
    launched_at: int | None = None
    terminated_at: int | None = None
    deleted_at: int | None = None
    residence: int = 0  # how often it has changed its cell
    leaving: str | None = None  # the cell for which it is leaving this one: nobody changes it meanwhile
