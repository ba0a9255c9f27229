"""What libvirt is asked for when a guest is sent, and what is made of what it says."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kilonova.errors import HostFault, TryAgain, Unreachable
from kilonova.rpc.moves import LivePlan, Presence, Progress
from kilonova.testing.clock import VirtualClock
from kilonova.virt.libvirt.live_job import Seen
from kilonova.virt.libvirt.live_options import LiveOptions
from kilonova.virt.libvirt.live_sending import Order, Sender, address_of, mending, order
from tests.unit.virt.test_moved_xml import domain, there

FLAGS = (
    "LIVE",
    "PEER2PEER",
    "PERSIST_DEST",
    "ABORT_ON_ERROR",
    "TUNNELLED",
    "TLS",
    "NON_SHARED_INC",
    "POSTCOPY",
    "AUTO_CONVERGE",
    "UNSAFE",
    "POSTCOPY_RESUME",
)
ALWAYS = {"LIVE", "PEER2PEER", "PERSIST_DEST", "ABORT_ON_ERROR"}
PARAMETERS = ("DEST_XML", "PERSIST_XML", "URI", "MIGRATE_DISKS", "BANDWIDTH", "BANDWIDTH_POSTCOPY")
LIBVIRT = SimpleNamespace(
    **{f"VIR_MIGRATE_{name}": 1 << number for number, name in enumerate(FLAGS)},
    **{f"VIR_MIGRATE_PARAM_{name}": name for name in PARAMETERS},
)
DISK = "<disk type='file'><source file='/a/{}'/><target dev='{}'/></disk>"
LIVE = domain("<name>live</name>", DISK.format("disk", "vda") + DISK.format("disk.config", "hdd"))


def asked(*, disks: dict[str, int] | None = None, block: bool = True, **options: Any) -> Order:
    plan = LivePlan(
        destination="there",
        shared_path=not block,
        block=block,
        migration_uri="tcp://10.0.0.2",
        disks={"disk": 1} if disks is None else disks,
        domain=there(),
    )
    return order(LIBVIRT, plan, LiveOptions(**options), LIVE, domain("<name>stored</name>"))


def flags(found: Order) -> set[str]:
    return {name for number, name in enumerate(FLAGS) if found.flags & 1 << number}


@pytest.mark.capability("MG-LM-8", "MG-LM-16")
def test_block_migration() -> None:
    found = asked()
    assert found.uri == "qemu+tcp://10.0.0.2/system"
    assert flags(found) == ALWAYS | {"NON_SHARED_INC"}
    assert found.parameters.keys() == {"DEST_XML", "PERSIST_XML", "URI", "MIGRATE_DISKS"}
    assert found.parameters["URI"] == "tcp://10.0.0.2"
    assert found.parameters["MIGRATE_DISKS"] == ["vda"]
    for name, which in (("DEST_XML", "live"), ("PERSIST_XML", "stored")):
        assert f"<name>{which}</name>" in found.parameters[name]
        assert 'compute_id="destination"' in found.parameters[name]


@pytest.mark.capability("MG-LM-8")
def test_a_shared_directory_sends_no_disks() -> None:
    found = asked(block=False)
    assert flags(found) == ALWAYS and "MIGRATE_DISKS" not in found.parameters


def test_a_guest_that_only_has_cds_sends_no_disks() -> None:
    assert flags(asked(disks={})) == ALWAYS


@pytest.mark.capability("MG-LM-8")
def test_disks_that_the_guest_does_not_use() -> None:
    with pytest.raises(HostFault, match=r"its disks disk\.swap as was planned"):
        asked(disks={"disk": 1, "disk.swap": 1})


@pytest.mark.capability("MG-LM-21", "MG-LM-22")
def test_post_copy_goes_before_auto_converge_and_keeps_the_limit_too() -> None:
    found = asked(permit_post_copy=True, permit_auto_converge=True, bandwidth=20)
    assert {"POSTCOPY"} == flags(found) & {"POSTCOPY", "AUTO_CONVERGE"}
    assert found.parameters["BANDWIDTH"] == found.parameters["BANDWIDTH_POSTCOPY"] == 20
    other = asked(permit_auto_converge=True, bandwidth=20)
    assert {"AUTO_CONVERGE"} == flags(other) & {"POSTCOPY", "AUTO_CONVERGE"}
    assert "BANDWIDTH_POSTCOPY" not in other.parameters


@pytest.mark.capability("MG-LM-22")
def test_what_is_in_two_halves_is_only_gone_on_with() -> None:
    plan = LivePlan(destination="there", shared_path=False, block=True, migration_uri="tcp://10.0.0.2")
    found = mending(LIBVIRT, plan, LiveOptions(scheme="tls", bandwidth=20))
    assert flags(found) == {"LIVE", "PEER2PEER", "POSTCOPY", "POSTCOPY_RESUME"}
    assert (found.uri, found.parameters) == ("qemu+tls://10.0.0.2/system", {"URI": "tcp://10.0.0.2"})


def test_transports() -> None:
    assert "UNSAFE" in flags(asked(unsafe=True))
    tunnelled = asked(tunnelled=True)
    assert "TUNNELLED" in flags(tunnelled) and "URI" not in tunnelled.parameters
    tls = asked(native_tls=True)
    assert "TLS" in flags(tls) and tls.uri == "qemu+tls://10.0.0.2/system"
    assert asked(scheme="ssh").uri == "qemu+ssh://10.0.0.2/system"
    assert asked(uri="qemu+tcp://%s:1234/system").uri == "qemu+tcp://10.0.0.2:1234/system"


def test_addresses_of_version_6() -> None:
    assert address_of("tcp://[fd00::2]") == "fd00::2"
    assert LiveOptions().libvirtd_of("fd00::2") == "qemu+tcp://[fd00::2]/system"


SENT = Progress(uuid="g", phase="running")


@pytest.mark.capability("MG-LM-18")
@pytest.mark.parametrize(
    ("seen", "presence"),
    [
        (Seen(), Presence.ABSENT),
        (Seen(state=1, reason=1), Presence.RUNNING),
        (Seen(state=1, reason=2), Presence.RUNNING),
        (Seen(state=1, reason=6), Presence.RUNNING),
        (Seen(state=1, reason=10), Presence.POSTCOPY),
        (Seen(state=1, reason=11), Presence.POSTCOPY),
        (Seen(state=1, reason=10, comes=True), Presence.POSTCOPY),
        (Seen(state=1, reason=1, sent=SENT), Presence.LEAVING),
        (Seen(state=3, reason=1), Presence.PAUSED),
        (Seen(state=3, reason=1, sent=SENT), Presence.LEAVING),
        (Seen(state=3, reason=2, sent=SENT), Presence.LEAVING),
        (Seen(state=3, reason=2), Presence.HELD),
        (Seen(state=3, reason=2, comes=True), Presence.INCOMING),
        (Seen(state=3, reason=11), Presence.INCOMING),
        (Seen(state=3, reason=12), Presence.POSTCOPY),
        (Seen(state=3, reason=12, sent=SENT), Presence.POSTCOPY),
        (Seen(state=3, reason=13), Presence.POSTCOPY),
        (Seen(state=5, reason=4), Presence.LEFT),
        (Seen(state=5, reason=4, sent=SENT), Presence.LEFT),
        (Seen(state=5, reason=0), Presence.OFF),
        (Seen(state=5, reason=2), Presence.OFF),
        (Seen(state=6, reason=4), Presence.OFF),
    ],
)
def test_presence_is_what_libvirt_says(seen: Seen, presence: str) -> None:
    assert seen.presence == presence
    assert seen.is_broken is ((seen.state, seen.reason) == (3, 13))
    assert seen.may_have_passed is (seen.state == 5 and seen.reason in (0, 8))


# ---- outcomes ----


class Script(Sender):
    """A sender whose guest is seen like this, one look after the other; the last look is repeated."""

    def __init__(self, *seen: Seen | Exception) -> None:
        clock = VirtualClock()
        super().__init__(SimpleNamespace(libvirt=LIBVIRT), LiveOptions(), clock)  # type: ignore[arg-type]
        self.script = list(seen)

    def job(self, uuid: str) -> Any:
        async def seen() -> Seen:
            now = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if isinstance(now, Exception):
                raise now
            return now

        async def look() -> Progress | None:
            return (await seen()).sent

        async def completed() -> dict[str, int]:
            return {"downtime": 7, "time_elapsed": 70}

        return SimpleNamespace(seen=seen, look=look, completed=completed)


PLAN = LivePlan(destination="there", shared_path=False, block=True)
AWAY = Seen(state=1, reason=1, sent=SENT)


@pytest.mark.capability("MG-LM-18")
@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ((Seen(state=5, reason=4),), "completed"),
        ((AWAY, Seen(state=5, reason=4)), "completed"),
        ((AWAY, Seen(state=1, reason=1)), "failed"),
        ((AWAY, Seen(state=3, reason=1)), "failed"),
        ((AWAY, Seen(state=5, reason=2)), "failed"),
        ((AWAY, Seen(state=5, reason=3)), "failed"),
        ((AWAY, Seen(state=5, reason=0)), "gone"),
        ((AWAY, Seen(state=5, reason=8)), "gone"),
        ((AWAY, Seen(state=3, reason=2)), "gone"),
        ((AWAY, Seen()), "gone"),
        ((Seen(),), "gone"),
        ((Seen(state=3, reason=12),), "gone"),
        ((Seen(state=3, reason=2, comes=True),), "gone"),
    ],
)
async def test_an_outcome_is_what_is_seen(seen: tuple[Seen, ...], state: str) -> None:
    outcome = await Script(*seen).send("g", PLAN)
    assert outcome.state == state
    assert (outcome.downtime, outcome.elapsed) == ((7, 70) if state == "completed" else (None, None))
    assert (outcome.reason == "") is (state == "completed")


@pytest.mark.capability("MG-LM-23")
async def test_one_that_was_called_back_is_cancelled_once() -> None:
    sender = Script(AWAY, Seen(state=1, reason=6))
    sender._called_back.add("g")
    assert (await sender.send("g", PLAN)).state == "cancelled"
    sender.script = [AWAY, Seen(state=1, reason=6)]
    assert (await sender.send("g", PLAN)).state == "failed"


@pytest.mark.parametrize("error", [TryAgain("busy"), Unreachable("gone")])
async def test_nothing_is_guessed_of_a_libvirtd_that_does_not_answer(error: Exception) -> None:
    for seen in ((error,), (AWAY, error)):
        with pytest.raises(Unreachable):
            await Script(*seen).send("g", PLAN)


async def test_those_who_ask_together_hear_the_same() -> None:
    sender = Script(Seen(state=5, reason=4))
    first, second = asyncio.create_task(sender.send("g", PLAN)), asyncio.create_task(sender.send("g", PLAN))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).state == "completed"
    assert len(sender._under_way) == 0
