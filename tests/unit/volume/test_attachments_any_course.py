"""Attachments in any course of events: the status of a volume always says who has it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from kilonova.clock import SystemClock
from kilonova.db import volume_types
from kilonova.db.sqlite import SqliteDatabase
from kilonova.errors import Conflict, NotFound
from kilonova.services.volume.records import NewVolume
from kilonova.testing.empty_database import have_tables
from tests.unit.volume.conftest import ALICE, House, new_uuid

SERVERS = [new_uuid() for _ in range(3)]
HOSTS = ["compute1", "compute2"]


class Course(RuleBasedStateMachine):
    """The model: for each volume its attachments (server, status), and whether it is being detached."""

    attachments = Bundle("attachments")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.run = self.loop.run_until_complete
        self.model: dict[str, dict[str, tuple[str, str]]] = {}
        self.detaching: set[str] = set()
        self.many: set[str] = set()

    async def _begin(self) -> None:
        path = Path(self.directory.name)
        await have_tables(path / "db")
        db = SqliteDatabase(path / "db", SystemClock())
        self.house = House(db, path / "volumes")
        await self.house.service.recover()
        kind = volume_types.VolumeType(id="many", name="many", extra_specs={"multiattach": "<is> True"})
        await db.write(lambda tx: volume_types.add(tx, kind))
        for wanted in (None, "many"):
            made = await self.house.service.create(ALICE, NewVolume(size_gb=1, type=wanted))
            self.model[made.id] = {}
            if wanted:
                self.many.add(made.id)
        await self.house.service.idle()

    @initialize()
    def begin(self) -> None:
        self.run(self._begin())

    def volume(self, number: int) -> str:
        return list(self.model)[number]

    def of(self, attachment: str) -> str | None:
        return next((volume for volume, there in self.model.items() if attachment in there), None)

    def refused(self, work: Any, *kinds: type[Exception]) -> bool:
        """Whether it is, in one of these ways."""
        try:
            self.run(work)
        except kinds:
            return True
        return False

    @rule(target=attachments, number=st.integers(0, 1), server=st.sampled_from(SERVERS))
    def reserve(self, number: int, server: str) -> str:
        volume, attachment = self.volume(number), new_uuid()
        there = self.model[volume]
        having = {has for has, _ in there.values()}
        free = volume not in self.detaching and (not having or volume in self.many)
        allowed = free or server in having
        work = self.house.service.reserve(ALICE, volume, server, attachment)
        assert self.refused(work, Conflict) != allowed
        if allowed:
            there[attachment] = (server, "reserved")
        return attachment

    @rule(attachment=attachments, server=st.sampled_from(SERVERS))
    def reserve_again(self, attachment: str, server: str) -> None:
        volume = self.of(attachment)
        if volume is not None:
            self.run(self.house.service.reserve(ALICE, volume, server, attachment))

    @rule(attachment=attachments, host=st.sampled_from(HOSTS))
    def connect(self, attachment: str, host: str) -> None:
        volume = self.of(attachment)
        before = self.run(self._shown(attachment))
        work = self.house.service.connect(attachment, host, "/dev/vdb")
        assert self.refused(work, NotFound) == (volume is None)
        if volume is not None:
            server, status = self.model[volume][attachment]
            stays = status == "attached" and before.host == host
            self.model[volume][attachment] = (server, "attached" if stays else "attaching")

    async def _shown(self, attachment: str) -> Any:
        try:
            return await self.house.service.attaching.show(attachment)
        except NotFound:
            return None

    @rule(attachment=attachments)
    def complete(self, attachment: str) -> None:
        volume = self.of(attachment)
        assert self.refused(self.house.service.complete(attachment), NotFound) == (volume is None)
        if volume is not None:
            server, _ = self.model[volume][attachment]
            self.model[volume][attachment] = (server, "attached")

    @rule(attachment=attachments)
    def release(self, attachment: str) -> None:
        volume = self.of(attachment)
        self.run(self.house.service.release(attachment))
        if volume is not None:
            del self.model[volume][attachment]
            self.detaching.discard(volume)

    @rule(number=st.integers(0, 1))
    def begin_detaching(self, number: int) -> None:
        volume = self.volume(number)
        allowed = any(status == "attached" for _, status in self.model[volume].values())
        allowed = allowed or volume in self.detaching
        work = self.house.service.begin_detaching(ALICE, volume)
        assert self.refused(work, Conflict) != allowed
        if allowed:
            self.detaching.add(volume)

    @rule(number=st.integers(0, 1))
    def roll_detaching(self, number: int) -> None:
        self.run(self.house.service.roll_detaching(self.volume(number)))
        self.detaching.discard(self.volume(number))

    @rule(number=st.integers(0, 1))
    def delete(self, number: int) -> None:
        volume = self.volume(number)
        if self.model[volume]:
            assert self.refused(self.house.service.delete(volume), Conflict)

    @invariant()
    def the_status_says_who_has_it(self) -> None:
        for volume, there in self.model.items():
            found = self.run(self.house.service.check(ALICE, volume))
            assert set(found.servers) == {server for server, _ in there.values()}
            statuses = {status for _, status in there.values()}
            expected = "available"
            for status, word in (
                ("reserved", "reserved"),
                ("attaching", "attaching"),
                ("attached", "in-use"),
            ):
                expected = word if status in statuses else expected
            assert found.status == ("detaching" if volume in self.detaching else expected)
            assert len(found.servers) <= 1 or volume in self.many

    def teardown(self) -> None:
        if hasattr(self, "house"):
            self.run(self.house.service.close())
            self.run(self.house.db.close())
        self.loop.close()
        self.directory.cleanup()


TestCourse = Course.TestCase
TestCourse.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)
