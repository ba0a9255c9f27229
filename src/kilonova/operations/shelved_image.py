"""The image that a shelved server is kept in, and what the server remembers of it."""

from __future__ import annotations

from kilonova.clock import iso_micro
from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.journal.model import Run
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.operations.cloud import Cloud
from kilonova.services.image.port import NewSnapshot
from kilonova.settings import Settings

SHELVED_AT = "shelved_at"
SHELVED_IMAGE = "shelved_image_id"
SHELVED_HOST = "shelved_host"
KEYS = (SHELVED_AT, SHELVED_IMAGE, SHELVED_HOST)
"""Of ``system_metadata``, by Nova's names."""

NEVER_INHERITED = frozenset(
    {
        "img_signature",
        "img_signature_hash_method",
        "img_signature_key_type",
        "img_signature_certificate_uuid",
        "cinder_encryption_key_id",
        "cinder_encryption_key_deletion_policy",
    }
)
"""What a base image says of its own data, which a snapshot's are not."""

MAX_NAME = 255


def name_of(instance: Instance) -> str:
    suffix = "-shelved"
    return instance.display_name[: MAX_NAME - len(suffix)] + suffix


def snapshot_of(
    settings: Settings, instance: Instance, image_id: str, name: str, own: dict[str, str]
) -> NewSnapshot:
    """What a snapshot of the server says of itself: its base image's properties, and Nova's.

    ``own`` are further properties, which count before those of the base.
    """
    base = instance.image
    left_out = {str(name) for name in settings.listed("non_inheritable_image_properties")} | NEVER_INHERITED
    inherited = {
        name: value for name, value in (base.properties if base else {}).items() if name not in left_out
    }
    return NewSnapshot(
        id=image_id,
        name=name,
        owner=instance.project_id,
        min_disk=max(base.min_disk if base else 0, instance.flavor.root_gb),
        min_ram=base.min_ram if base else 0,
        properties={
            **inherited,
            "base_image_ref": base.id if base else "",
            **own,
            "instance_uuid": instance.uuid,
            "image_type": "snapshot",
            "image_location": "snapshot",
            "image_state": "available",
            "owner_id": instance.project_id,
        },
    )


def shelved_image(instance: Instance) -> str | None:
    """The image that the server is kept in, if it is shelved."""
    return instance.system_metadata.get(SHELVED_IMAGE)


def remember(tx: Tx, run: Run, image_id: str) -> None:
    """Note with the server that it is shelved: when, where, and in which image."""
    instance: Instance = run.known["instance"]
    said = {
        SHELVED_AT: iso_micro(run.cloud.clock.now()),
        SHELVED_IMAGE: image_id,
        SHELVED_HOST: instance.host or "",
    }
    _change(tx, run, said)


def forget(tx: Tx, run: Run) -> None:
    """The server is not shelved any more."""
    _change(tx, run, {})


def _change(tx: Tx, run: Run, said: dict[str, str]) -> None:
    """Others write into the same column (the guest's password), so it is read here."""
    found = instances.show(tx, run.instance_uuid)
    if found is None:
        return
    kept = {key: value for key, value in found.system_metadata.items() if key not in KEYS} | said
    instances.update(tx, run.instance_uuid, expect_task=instances.ANY, system_metadata=kept)
    run.known.pop("instance", None)


async def remove(cloud: Cloud, instance: Instance) -> None:
    """Delete the image of a server that is shelved, if it is."""
    image_id = shelved_image(instance)
    if image_id is not None:
        await cloud.image.remove_snapshot(image_id)


def owner_of(run: Run, instance: Instance) -> RequestContext:
    """Who may see the image: the project of the server, whoever asked for the operation."""
    return RequestContext(
        request_id=run.action.request_id,
        user_id=instance.user_id,
        project_id=instance.project_id,
        roles=frozenset({"member"}),
    )
