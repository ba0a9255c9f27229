"""Sharing an image with other projects: who offers, who accepts, by Glance's rules."""

from __future__ import annotations

import msgspec

from kilonova.clock import Clock
from kilonova.db import images
from kilonova.db.engine import Database, Tx, UniqueViolation
from kilonova.db.images import StoredImage, StoredMember
from kilonova.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge
from kilonova.model.context import RequestContext
from kilonova.services.image import access
from kilonova.services.image.fields import MEMBER_STATUSES, clean_text

MAX_MEMBERS = 128


class ImageMembers:
    """The projects that images are shared with.

    Everything raises NotFound for an image that the caller may not see, and Forbidden for one whose
    visibility is not ``shared``.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def add(self, context: RequestContext, image_id: str, project: str) -> StoredMember:
        """Raises Conflict when it is a member already, TooLarge when there are too many."""
        clean_text("member", project, least=1)

        def run(tx: Tx) -> StoredMember:
            image = images.lock(tx, image_id, context.project_id)
            _shared(access.check_changeable(image, image_id, context))
            if images.count_members(tx, image_id) >= MAX_MEMBERS:
                raise TooLarge(f"The limit on the number of image members is reached: {MAX_MEMBERS}.")
            now = self._clock.now()
            new = StoredMember(
                image_id=image_id, member=project, status="pending", created_at=now, updated_at=now
            )
            images.add_member(tx, new)
            return new

        try:
            return await self._db.write(run)
        except UniqueViolation:
            raise Conflict(f"Project {project} is already a member of image {image_id}.") from None

    async def list(self, context: RequestContext, image_id: str) -> list[StoredMember]:
        """All members for the owner, the caller's own membership for a member."""

        def run(tx: Tx) -> list[StoredMember]:
            image = access.check_visible(images.show(tx, image_id, context.project_id), image_id, context)
            _shared(image)
            found = images.members(tx, image_id)
            if access.is_owner(image, context):
                return found
            return [each for each in found if each.member == context.project_id]

        return await self._db.read(run)

    async def show(self, context: RequestContext, image_id: str, project: str) -> StoredMember:
        """Raises NotFound for another project's membership, unless the caller owns the image."""
        for each in await self.list(context, image_id):
            if each.member == project:
                return each
        raise _no_member(image_id, project)

    async def set_status(
        self, context: RequestContext, image_id: str, project: str, status: str
    ) -> StoredMember:
        """Raises Forbidden for anyone but the member: the owner cannot accept for it."""
        if status not in MEMBER_STATUSES:
            raise Invalid(f"Invalid value for status: it must be one of {', '.join(MEMBER_STATUSES)}.")

        def run(tx: Tx) -> StoredMember:
            image = access.check_visible(images.lock(tx, image_id, context.project_id), image_id, context)
            _shared(image)
            access.check_writer(context)
            found = images.member(tx, image_id, project)
            if not context.is_admin and project != context.project_id:
                if found is None or not access.is_owner(image, context):
                    raise _no_member(image_id, project)
                raise Forbidden("You are not permitted to modify the status of another project.")
            if found is None:
                raise _no_member(image_id, project)
            now = self._clock.now()
            images.set_member_status(tx, image_id, project, status, now)
            return msgspec.structs.replace(found, status=status, updated_at=now)

        return await self._db.write(run)

    async def remove(self, context: RequestContext, image_id: str, project: str) -> None:
        """Raises NotFound when it is no member."""

        def run(tx: Tx) -> None:
            image = images.lock(tx, image_id, context.project_id)
            _shared(access.check_changeable(image, image_id, context))
            if not images.remove_member(tx, image_id, project):
                raise _no_member(image_id, project)

        await self._db.write(run)


def _shared(image: StoredImage) -> None:
    if image.visibility != "shared":
        raise Forbidden("Only shared images have members.")


def _no_member(image_id: str, project: str) -> NotFound:
    return NotFound(f"{project} not found in the member list of the image {image_id}.")
