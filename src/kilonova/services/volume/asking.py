"""What a user asks for when a volume is made or grown: whether it can be, and what it counts."""

from __future__ import annotations

from collections.abc import Callable

from kilonova.clock import Clock
from kilonova.db import volume_ledger as ledger
from kilonova.db import volume_types, volumes
from kilonova.db.engine import Tx
from kilonova.db.volume_types import DEFAULT_NAME, VolumeType
from kilonova.db.volumes import StoredVolume
from kilonova.errors import Invalid, NotFound, OverQuota
from kilonova.model.context import RequestContext
from kilonova.model.image import Image
from kilonova.services.volume.files import GIB
from kilonova.services.volume.making import new_maker
from kilonova.services.volume.records import Images, InvalidVolume, NewVolume, Options, seen_by

FORMATS = ("raw", "qcow2", "iso")


class Asking:
    """Checks what is asked for, and notes it."""

    def __init__(self, clock: Clock, new_uuid: Callable[[], str], images: Images, options: Options) -> None:
        self._clock = clock
        self._new_uuid = new_uuid
        self._images = images
        self._options = options

    async def image_for(self, context: RequestContext, new: NewVolume) -> Image | None:
        """The image that the volume is to be made from, if it can be.  Raises Invalid."""
        if new.image_id is None:
            return None
        try:
            image = await self._images.show(context, new.image_id)
        except NotFound as error:
            raise Invalid("Invalid image identifier or unable to access requested image.") from error
        if image.status != "active":
            raise Invalid(f"Image {image.id} is {image.status}, not active.")
        if image.disk_format not in FORMATS:
            raise Invalid(
                f"Image {image.id} is {image.disk_format}; volumes are made of {', '.join(FORMATS)}."
            )
        least = max(image.min_disk, -(-(image.virtual_size or image.size) // GIB))
        if new.size_gb is not None and new.size_gb < least:
            raise Invalid(
                f"Volume size {new.size_gb}GB cannot be smaller than the image minDisk size or its virtual "
                f"size, {least}GB."
            )
        return image

    def add(self, tx: Tx, context: RequestContext, new: NewVolume, image: Image | None) -> StoredVolume:
        """The row of the new volume.  Raises Invalid, NotFound, OverQuota, Conflict; UniqueViolation, when a
        repeat succeeds."""
        now = self._clock.now()
        source = self._source(tx, context, new)
        kind = self._type(tx, context, new.type, source, now)
        size = self._size(new, source)
        project = context.project_id or ""
        self._check_size(tx, project, size)
        self._use(tx, project, "volumes", 1)
        self._use(tx, project, "gigabytes", size)
        volume = StoredVolume(
            id=self._new_uuid(),
            project_id=project,
            user_id=context.user_id,
            name=new.name,
            description=new.description,
            size_gb=size,
            type_id=kind.id,
            zone=new.zone or (source.zone if source else self._options.zone),
            bootable=image is not None or (source is not None and source.bootable),
            multiattach=kind.multiattach,
            metadata=new.metadata,
            image_metadata=image_metadata(image) if image else source.image_metadata if source else None,
            source_image=image.id if image else None,
            source_volume=source.id if source else None,
            maker=new_maker(),
            created_at=now,
            updated_at=now,
        )
        volumes.add(tx, volume)
        return volume

    def grow(self, tx: Tx, volume: StoredVolume, size_gb: int) -> None:
        """Count what a volume grows by.  Raises Invalid, OverQuota."""
        if size_gb <= volume.size_gb:
            raise Invalid(
                f"New size for extend must be greater than current size. (current: {volume.size_gb}, "
                f"extended: {size_gb})."
            )
        self._check_size(tx, volume.project_id, size_gb)
        self._use(tx, volume.project_id, "gigabytes", size_gb - volume.size_gb)

    def limit(self, tx: Tx, project_id: str, resource: str) -> int:
        return ledger.limits(tx, project_id).get(resource, self._options.quotas[resource])

    def _source(self, tx: Tx, context: RequestContext, new: NewVolume) -> StoredVolume | None:
        if new.source_volume is None:
            return None
        source = seen_by(volumes.lock(tx, new.source_volume), new.source_volume, context)
        if source.status != "available":
            raise InvalidVolume(
                f"volume {source.id} is {source.status}; only one that is available can be copied."
            )
        if new.size_gb is not None and new.size_gb < source.size_gb:
            raise Invalid(
                f"Volume size '{new.size_gb}'GB cannot be smaller than original volume size "
                f"{source.size_gb}GB. They must be >= original volume size."
            )
        return source

    def _type(
        self, tx: Tx, context: RequestContext, wanted: str | None, source: StoredVolume | None, now: int
    ) -> VolumeType:
        default = volume_types.default(tx, now)
        if wanted is None or wanted == DEFAULT_NAME:
            copied = volume_types.show(tx, source.type_id) if source and wanted is None else None
            return copied or default
        found = volume_types.show(tx, wanted) or volume_types.named(tx, wanted)
        if found is None or not (found.is_public or context.is_admin):
            raise NotFound(f"Volume type with name {wanted} could not be found.")
        return found

    def _size(self, new: NewVolume, source: StoredVolume | None) -> int:
        if new.size_gb is None and source is None:
            raise Invalid("Invalid input received: size is needed, a whole number of GiB.")
        return new.size_gb or (source.size_gb if source else 1)

    def _check_size(self, tx: Tx, project: str, size: int) -> None:
        most = self.limit(tx, project, "per_volume_gigabytes")
        if 0 <= most < size:
            raise OverQuota(f"Requested volume size {size}G is larger than maximum allowed limit {most}G.")

    def _use(self, tx: Tx, project: str, resource: str, count: int) -> None:
        used = ledger.use(tx, project, resource, count)
        limit = self.limit(tx, project, resource)
        if not 0 <= limit < used:
            return
        if resource == "volumes":
            raise OverQuota(f"Maximum number of volumes allowed ({limit}) exceeded for quota 'volumes'.")
        raise OverQuota(
            "Requested volume or snapshot exceeds allowed gigabytes quota. "
            f"Requested {count}G, quota is {limit}G and {used - count}G has been consumed."
        )


def image_metadata(image: Image) -> dict[str, str]:
    """What a volume remembers of the image that it was made from, all as text."""
    fields = {
        "image_id": image.id,
        "image_name": image.name or "",
        "checksum": image.checksum or "",
        "container_format": image.container_format,
        "disk_format": image.disk_format,
        "min_disk": str(image.min_disk),
        "min_ram": str(image.min_ram),
        "size": str(image.size),
    }
    return {**image.properties, **fields}
