"""The body of ``createImage``."""

from __future__ import annotations

from typing import Annotated

from kilonova.api.schema.kinds import Metadata, Name
from kilonova.api.shape import Key, Maybe, Shape


class NewImage(Shape):
    name: Name
    metadata: Maybe[Metadata] = None


class CreateImage(Shape):
    create_image: Annotated[NewImage, Key("createImage")]
