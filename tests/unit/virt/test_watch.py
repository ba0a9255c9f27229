"""What guests do by themselves, and what is made of it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from kilonova.errors import TryAgain
from kilonova.model.states import Power
from kilonova.virt.libvirt.domains import power_of
from kilonova.virt.libvirt.watch import Watch

# virDomainEventType
DEFINED, STARTED, SUSPENDED, RESUMED, STOPPED, SHUTDOWN, PM_SUSPENDED, CRASHED = 0, 2, 3, 4, 5, 6, 7, 8


class Scene:
    def __init__(self, states: dict[str, int]) -> None:
        self.states = states
        self.told: list[tuple[str, int]] = []
        self.watch = Watch(self.look)

    async def look(self) -> dict[str, int]:
        return dict(self.states)

    async def open(self) -> Watch:
        await self.watch.open(lambda uuid, state: self.told.append((uuid, state)))
        return self.watch


@pytest.mark.capability("MG-LCE-1")
@pytest.mark.parametrize(
    ("event", "state"),
    [
        (STARTED, Power.RUNNING),
        (RESUMED, Power.RUNNING),
        (SUSPENDED, Power.PAUSED),
        (STOPPED, Power.SHUTDOWN),
        (PM_SUSPENDED, Power.SUSPENDED),
        (CRASHED, Power.CRASHED),
    ],
)
async def test_events_become_power_states(event: int, state: int) -> None:
    scene = Scene({"a": Power.RUNNING})
    watch = await scene.open()
    watch.lifecycle("a", event, 0)
    assert scene.told == [("a", state)]


@pytest.mark.capability("MG-LCE-1")
@pytest.mark.parametrize("event", [DEFINED, SHUTDOWN, 1, 99])
async def test_events_that_say_nothing_of_power(event: int) -> None:
    scene = Scene({"a": Power.RUNNING})
    (await scene.open()).lifecycle("a", event, 0)
    assert scene.told == []


@pytest.mark.capability("MG-LCE-1")
async def test_a_guest_that_goes_live_is_paused_and_then_not_off_but_gone() -> None:
    scene = Scene({"a": Power.RUNNING})
    watch = await scene.open()
    watch.lifecycle("a", SUSPENDED, 1)  # migrated
    watch.lifecycle("a", STOPPED, 3)  # migrated
    assert scene.told == [("a", Power.PAUSED)]
    scene.states = {"a": Power.NOSTATE}
    await watch.back()
    assert scene.told == [("a", Power.PAUSED)]


def test_what_a_guest_that_went_live_leaves_is_not_one_that_is_off() -> None:
    assert power_of(5, 4) == Power.NOSTATE
    assert power_of(5, 2) == power_of(5, 0) == Power.SHUTDOWN
    assert power_of(3, 2) == Power.PAUSED


@pytest.mark.capability("MG-LCE-6")
async def test_guests_of_others_are_none_of_our_business() -> None:
    scene = Scene({"a": Power.RUNNING})
    watch = await scene.open()
    watch.lifecycle("b", STOPPED, 0)
    assert scene.told == []
    watch.add("b")
    watch.lifecycle("b", STARTED, 0)
    watch.remove("b")
    watch.lifecycle("b", STOPPED, 0)
    assert scene.told == [("b", Power.RUNNING)]


async def test_what_happened_while_libvirtd_was_away() -> None:
    scene = Scene({"same": Power.RUNNING, "died": Power.RUNNING, "gone": Power.PAUSED})
    watch = await scene.open()
    watch.add("started")
    watch.lost()
    scene.states = {
        "same": Power.RUNNING,
        "died": Power.SHUTDOWN,
        "started": Power.RUNNING,
        "new": Power.PAUSED,
    }
    await watch.back()
    assert sorted(scene.told) == [
        ("died", Power.SHUTDOWN),
        ("gone", Power.NOSTATE),
        ("started", Power.RUNNING),
    ]
    scene.told.clear()
    await watch.back()
    assert scene.told == []  # nothing has changed since
    watch.lifecycle("new", STOPPED, 0)
    assert scene.told == [("new", Power.SHUTDOWN)]


async def test_a_reboot_that_is_waited_for() -> None:
    watch = await Scene({"a": Power.RUNNING}).open()
    reboot = watch.reboot_of("a")
    watch.rebooted("b")
    watch.lifecycle("a", SHUTDOWN, 0)
    assert not reboot.done()
    watch.rebooted("a")
    watch.rebooted("a")
    assert reboot.result() is True


@pytest.mark.parametrize("event", [STOPPED, CRASHED])
async def test_a_guest_that_goes_off_in_place_of_a_reboot(event: int) -> None:
    watch = await Scene({"a": Power.RUNNING}).open()
    reboot = watch.reboot_of("a")
    watch.lifecycle("a", event, 0)
    assert reboot.result() is False


async def test_a_reboot_during_which_libvirtd_goes_away_is_asked_for_again() -> None:
    watch = await Scene({"a": Power.RUNNING}).open()
    reboot = watch.reboot_of("a")
    watch.lost()
    watch.rebooted("a")
    with pytest.raises(TryAgain, match="while the guest restarted"):
        await reboot


async def test_a_reboot_that_failed_otherwise_is_not_complained_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = await Scene({"a": Power.RUNNING}).open()
    watch.reboot_of("a")
    watch.lost()
    watch.forget_reboot("a")
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_reboot_that_nobody_waits_for_any_more() -> None:
    watch = await Scene({"a": Power.RUNNING}).open()
    reboot = watch.reboot_of("a")
    watch.forget_reboot("a")
    watch.rebooted("a")
    watch.forget_reboot("a")
    with pytest.raises(asyncio.CancelledError):
        await reboot


async def test_nothing_is_told_after_the_end() -> None:
    scene = Scene({"a": Power.RUNNING})
    watch = await scene.open()
    watch.close()
    watch.lifecycle("a", STOPPED, 0)
    assert scene.told == []


@pytest.mark.capability("MG-DEV-8")
async def test_a_device_that_is_waited_for() -> None:
    scene = Scene({"a": Power.RUNNING})
    watch = await scene.open()
    gone, kept, other = (watch.removal_of("a", alias) for alias in ("net1", "net2", "net3"))
    watch.device_removed("b", "net1", refused=False)
    watch.device_removed("a", "net9", refused=True)  # nobody asks for that one
    assert not any(each.told.is_set() for each in (gone, kept, other))
    watch.device_removed("a", "net1", refused=False)
    watch.device_removed("a", "net2", refused=True)
    assert (gone.told.is_set(), gone.refused) == (True, False)
    assert (kept.told.is_set(), kept.refused) == (True, True)
    watch.lost()  # nothing more is heard: whoever waits looks for himself
    assert (other.told.is_set(), other.refused) == (True, False)
    watch.forget_removal("a", "net3")
    watch.forget_removal("a", "net3")
    watch.device_removed("a", "net3", refused=True)
    assert not other.refused
