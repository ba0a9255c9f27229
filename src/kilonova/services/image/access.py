"""Who may see an image and who may change it, by Glance's default policy."""

from __future__ import annotations

from kilonova.db.images import DELETED, StoredImage
from kilonova.errors import Forbidden, NotFound
from kilonova.model.context import RequestContext

_WRITERS = frozenset({"member", "manager", "admin"})


def not_found(image_id: str) -> NotFound:
    return NotFound(f"No image found with ID {image_id}.")


def is_visible(image: StoredImage, context: RequestContext) -> bool:
    if context.is_admin or image.visibility in ("public", "community"):
        return True
    if context.project_id is None:
        return False
    if image.owner == context.project_id:
        return True
    return image.visibility == "shared" and image.membership is not None


def is_owner(image: StoredImage, context: RequestContext) -> bool:
    """Whether the image is the caller's to change."""
    return context.is_admin or (context.project_id is not None and image.owner == context.project_id)


def check_writer(context: RequestContext) -> None:
    """Raises Forbidden for a reader, and for one without a project who is no administrator."""
    if not context.roles & _WRITERS:
        raise Forbidden("You are not authorized to complete this action: it needs the role member.")
    if context.project_id is None and not context.is_admin:
        raise Forbidden("You are not authorized to complete this action: the token has no project.")


def check_visible(image: StoredImage | None, image_id: str, context: RequestContext) -> StoredImage:
    """Raises NotFound, also for what the caller may not know of."""
    if image is None or image.status == DELETED or not is_visible(image, context):
        raise not_found(image_id)
    return image


def check_changeable(image: StoredImage | None, image_id: str, context: RequestContext) -> StoredImage:
    """Raises NotFound, or Forbidden for what the caller may see and not change."""
    found = check_visible(image, image_id, context)
    check_writer(context)
    if not is_owner(found, context):
        raise Forbidden(f"You are not permitted to modify image {image_id}: it belongs to another project.")
    return found


def check_public(visibility: str, context: RequestContext) -> None:
    """Raises Forbidden when one who is no administrator makes an image public."""
    if visibility == "public" and not context.is_admin:
        raise Forbidden("You are not authorized to complete publicize_image action.")
