"""What tests of moves look for is found: each thing that may be wrong after a move is complained of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Integer, Table, delete, insert, select, update

from kilonova.db.engine import Tx
from kilonova.db.tables.cells import migration_contexts, migrations
from kilonova.db.tables.compute import hosts, instances
from kilonova.db.tables.network import port_bindings, ports
from kilonova.db.tables.placement import allocations
from kilonova.model.states import Power, Task, Vm
from kilonova.testing.embedded import settled
from kilonova.testing.one_guest import Sight, complaints
from tests.operations.live_hosts import live

THERE = Sight(power=Power.RUNNING, plugged=1, files=True)
ELSEWHERE = Sight()


class Rollback(Exception):
    """Nothing of it is kept."""


async def test_every_complaint(tmp_path: Path) -> None:
    async with live(tmp_path / "state") as three:
        uuid = await three.boot()
        moved, _ = await three.move(uuid, host="h2")
        assert moved.host == "h2"
        await settled(three.cloud, uuid)

        async def said(there: Sight = THERE, other: Sight = ELSEWHERE, wrong: Any = None) -> str:
            found: list[str] = []

            def look(tx: Tx) -> None:
                if wrong is not None:
                    tx.run(wrong)
                found.extend(complaints(tx, uuid, {"h1": other, "h2": there, "h3": ELSEWHERE}))
                raise Rollback

            try:
                await three.cloud.db.write(look)
            except Rollback:
                return "; ".join(found)
            raise AssertionError

        def but(**what: object) -> Sight:
            return msgspec.structs.replace(THERE, **what)

        assert await said() == ""
        assert "its guest {}" in await said(but(power=None))
        assert "'h1': 1" in await said(other=Sight(power=Power.RUNNING))
        assert "does not run" in await said(but(power=Power.PAUSED))
        error = _set(vm_state=Vm.ERROR)
        assert "does not tell why" in await said(but(power=Power.PAUSED), wrong=error)
        assert "does not run" not in await said(but(power=Power.PAUSED), wrong=error)
        assert "plugged are {}" in await said(but(plugged=0))
        assert "plugged are" in await said(other=Sight(plugged=1))
        assert "not wired on h2" in await said(but(unwired=1))
        assert "files are on ['h1', 'h2']" in await said(other=Sight(files=True))
        assert "put aside on ['h1']" in await said(other=Sight(aside=True))
        assert "still migrating" in await said(wrong=_set(task_state=Task.MIGRATING))
        assert "is on h3" in await said(wrong=_set(host="h3"))
        assert "the server resized" in await said(wrong=_set(vm_state=Vm.RESIZED))
        for status, words in (
            ("running", "still running"),
            ("failed", "is failed"),
            ("finished", "finished"),
        ):
            assert words in await said(wrong=update(migrations).values(status=status))
        third = select(hosts.c.compute_id).where(hosts.c.host == "h3").scalar_subquery()
        rows = update(allocations).where(allocations.c.consumer == uuid)
        assert "holds ['h3']" in await said(wrong=rows.values(provider=third))
        assert "holds []" in await said(wrong=delete(allocations).where(allocations.c.consumer == uuid))
        move = select(migrations.c.uuid).scalar_subquery()
        assert "completed holds ['h2']" in await said(wrong=rows.values(consumer=move))
        assert "are bound to ['h3']" in await said(wrong=update(ports).values(host="h3"))
        port = select(ports.c.id).where(ports.c.device_id == uuid).scalar_subquery()
        besides = insert(port_bindings).values({**_blank(port_bindings), "port_id": port, "host": "h3"})
        assert "bound to h3 besides" in await said(wrong=besides)
        left = insert(migration_contexts).values(migration_uuid="m", instance_uuid=uuid, content="{}")
        assert "remembers is left" in await said(wrong=left)


def _set(**values: object) -> Any:
    return update(instances).values(**values)


def _blank(table: Table) -> dict[str, object]:
    return {each.name: 0 if isinstance(each.type, Integer) else "" for each in table.columns}
