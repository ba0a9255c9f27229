"""Bodies of live migrations."""

from __future__ import annotations

from typing import Annotated

from kilonova.api.schema.kinds import Flag, read_flag
from kilonova.api.schema.servers import HostName
from kilonova.api.shape import Key, Reads, Shape, between, since, until


def _read_block(value: bool | str | int) -> bool | None:
    """None: ``auto``."""
    return None if value == "auto" else read_flag(value)


class LiveMigration(Shape):
    host: HostName | None
    block: Annotated[Flag, until(24), Key("block_migration")]
    block_or_auto: Annotated[
        bool | None, Reads(bool | str | int, _read_block), since(25), Key("block_migration")
    ]
    disk_over_commit: Annotated[Flag, until(24)]
    force: Annotated[Flag, between(30, 67)] = False


class MigrateLive(Shape):
    migrate: Annotated[LiveMigration, Key("os-migrateLive")]


class ForceComplete(Shape):
    force_complete: None
