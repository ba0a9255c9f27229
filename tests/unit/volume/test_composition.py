"""Where clouds of each kind keep their volumes, and that a killed one goes on with what it was making."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.controller import places_of
from kilonova.services.volume.files import Draft
from kilonova.services.volume.records import NewVolume
from kilonova.state_dir import StateDir
from kilonova.testing.embedded import embedded, kill, member, settings_for


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    async with embedded(tmp_path / "state") as made:
        yield made


async def test_one_process_keeps_them_in_its_state_directory(cloud: EmbeddedCloud, tmp_path: Path) -> None:
    volume = await cloud.volume.create(member(cloud), NewVolume(size_gb=1))
    await cloud.volume.idle()
    there = tmp_path / "state" / "volumes"
    assert (there / volume.id).is_file()
    assert stat.S_IMODE(there.stat().st_mode) == 0o711, (
        "QEMU reaches what it is told of, and sees nothing else"
    )
    assert cloud.cloud.volume is cloud.volume


async def test_a_directory_may_be_chosen(tmp_path: Path) -> None:
    chosen, limits = str(tmp_path / "elsewhere"), {"quota_volumes": 1, "storage_availability_zone": "z1"}
    async with embedded(tmp_path / "state", volume={"directory": chosen, **limits}) as cloud:
        volume = await cloud.volume.create(member(cloud), NewVolume(size_gb=1))
        await cloud.volume.idle()
        assert (tmp_path / "elsewhere" / volume.id).is_file()
        assert volume.zone == "z1"
        assert cloud.volume.options.quotas["volumes"] == 1


async def test_a_killed_cloud_goes_on_with_what_it_was_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stuck(draft: Draft) -> None:
        loop.call_soon_threadsafe(reached.set)
        raise asyncio.CancelledError

    async with embedded(tmp_path / "state") as cloud:
        with monkeypatch.context() as patch:
            patch.setattr(Draft, "publish", stuck)
            image = cloud.example_image
            volume = await cloud.volume.create(member(cloud), NewVolume(size_gb=1, image_id=image))
            await asyncio.wait_for(reached.wait(), 20)
            await kill(cloud)
    async with embedded(tmp_path / "state") as again:
        await again.volume.idle()
        assert (await again.volume.check(member(again), volume.id)).status == "available"
        assert (tmp_path / "state" / "volumes" / volume.id).is_file()


def test_controllers_need_a_directory_that_they_share(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state")
    assert places_of(settings_for(tmp_path), state).volumes is None
    named = settings_for(tmp_path, volume={"directory": "/srv/volumes"})
    assert places_of(named, state).volumes == Path("/srv/volumes")
    state.close()
