"""How many servers hosts have, and what they are doing: counted of the servers, so never out of step."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from sqlalchemy import bindparam, func, select

from kilonova.db.engine import Statement, Tx
from kilonova.db.tables.compute import instances
from kilonova.model.instance import ImageMeta
from kilonova.model.states import Vm

_i = instances.c
_there = (_i.host.is_not(None), _i.deleted_at.is_(None), _i.vm_state != Vm.SHELVED_OFFLOADED)

COUNTS = Statement(select(_i.host, func.count(), func.count(_i.task_state)).where(*_there).group_by(_i.host))
SERVERS = Statement(
    select(_i.vm_state, _i.task_state, _i.project_id, _i.image).where(*_there, _i.host == bindparam("of"))
)

_image = msgspec.json.Decoder(ImageMeta).decode


class Count(msgspec.Struct, frozen=True):
    """``busy``: of all ``servers``, those with something going on."""

    servers: int = 0
    busy: int = 0


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One server of a host, in the words that statistics need."""

    vm_state: str
    task_state: str | None
    project_id: str
    os_type: str | None


def counts(tx: Tx) -> dict[str, Count]:
    """Host -> its servers; one statement, whatever their number."""
    return {row[0]: Count(int(row[1]), int(row[2])) for row in tx.all(COUNTS)}


def servers(tx: Tx, host: str) -> Iterator[ServerFacts]:
    for vm_state, task_state, project_id, image in tx.all(SERVERS, of=host):
        properties = {} if image is None else _image(image).properties
        yield ServerFacts(
            vm_state=vm_state,
            task_state=task_state,
            project_id=project_id,
            os_type=properties.get("os_type"),
        )
