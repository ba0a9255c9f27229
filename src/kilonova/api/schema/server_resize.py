"""Bodies of resizes and cold migrations."""

from __future__ import annotations

from typing import Annotated, Any

from kilonova.api.schema.servers import DiskConfig, FlavorRef, HostName
from kilonova.api.shape import Key, Maybe, Shape, since, until

NAMES_HOST = 56


class NewFlavor(Shape):
    flavor: Annotated[FlavorRef, Key("flavorRef")]
    disk_config: Annotated[Maybe[DiskConfig], Key("OS-DCF:diskConfig")] = None


class Resize(Shape):
    resize: NewFlavor


class Target(Shape):
    host: HostName


class Migrate(Shape):
    anything: Annotated[Any, until(NAMES_HOST - 1), Key("migrate")]
    migrate: Annotated[Target | None, since(NAMES_HOST)]


class ConfirmResize(Shape):
    value: Annotated[Any, Key("confirmResize")]


class RevertResize(Shape):
    value: Annotated[Any, Key("revertResize")]
