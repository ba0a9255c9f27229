"""The body of an evacuation."""

from __future__ import annotations

from typing import Annotated

from kilonova.api.schema.kinds import Flag
from kilonova.api.schema.servers import HostName
from kilonova.api.shape import Key, Maybe, Shape, between, until


class Evacuation(Shape):
    host: Maybe[HostName] = None
    on_shared_storage: Annotated[Flag, until(13), Key("onSharedStorage")]
    admin_pass: Annotated[Maybe[str], Key("adminPass")] = None
    force: Annotated[Maybe[Flag], between(29, 67)] = None


class Evacuate(Shape):
    evacuate: Evacuation
