"""How long a guest has to shut itself down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kilonova.app import EmbeddedCloud
from kilonova.db import instances
from kilonova.model.states import Power, Vm
from kilonova.operations import stop
from kilonova.rpc.messages import Command, Observed
from kilonova.testing.embedded import embedded, member, server, settled
from tests.crash.scenes import boot


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    async with embedded(tmp_path / "state", DEFAULT={"host": "h1", "shutdown_timeout": 7}) as made:
        yield made


@pytest.mark.capability("MG-PWR-1")
async def test_the_image_says_how_long_or_the_option_does(cloud: EmbeddedCloud) -> None:
    asked: list[tuple[float, bool]] = []
    agent = cloud.agent
    assert agent is not None

    async def shut_down(command: Command, uuid: str, *, timeout: float, clean: bool) -> Observed:
        asked.append((timeout, clean))
        return Observed(uuid=uuid, power_state=Power.SHUTDOWN, generation=1)

    agent.shut_down = shut_down  # type: ignore[method-assign]
    uuid = await boot(cloud)
    image = (await settled(cloud, uuid)).image
    assert image is not None
    for value, seconds in (
        (None, 7.0),
        ("5", 5.0),
        ("0", 0.0),
        ("", 7.0),
        ("soon", 7.0),
        ("-1", 7.0),
        ("1.5", 7.0),
        ("\u00b2", 7.0),
        ("9" * 400, 7.0),
    ):
        properties = {} if value is None else {"os_shutdown_timeout": value}
        changed = msgspec.structs.replace(image, properties=properties)
        await cloud.db.write(
            lambda tx, changed=changed: instances.update(  # type: ignore[misc]
                tx, uuid, expect_task=None, vm_state=Vm.ACTIVE, image=changed
            )
        )
        await stop.submit(cloud.cloud, member(cloud), uuid)
        assert (await settled(cloud, uuid)).vm_state == Vm.STOPPED
        assert asked.pop() == (seconds, True), value
    await cloud.db.write(lambda tx: instances.update(tx, uuid, expect_task=None, vm_state=Vm.ACTIVE))
    await stop.submit(cloud.cloud, member(cloud), uuid, clean=False)
    assert (await settled(cloud, uuid)).vm_state == Vm.STOPPED
    assert asked == [(7.0, False)]
    assert (await server(cloud, uuid)).fault is None
