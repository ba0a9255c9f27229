"""Moves over NATS: every verb is a question on the bus."""

from __future__ import annotations

from typing import Any, Protocol

from kilonova.model.volume import Attachment
from kilonova.rpc.messages import Command, GuestSpec, Observed
from kilonova.rpc.moves import ArrivalFacts, Inbox, LiveOutcome, LivePlan, LiveWish, Located, Progress


class Ask(Protocol):
    async def __call__(self, verb: str, **arguments: Any) -> Any: ...


class NatsMover:
    """Implements rpc.mover.Mover with what asks the agent of one host."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def locate(self, uuid: str) -> Located:
        found: Located = await self._ask("locate", uuid=uuid)
        return found

    async def progress(self, uuid: str) -> Progress:
        found: Progress = await self._ask("progress", uuid=uuid)
        return found

    async def check_volumes(self, uuid: str, volumes: tuple[Attachment, ...]) -> None:
        await self._ask("check_volumes", uuid=uuid, volumes=volumes)

    async def put_probe(self, command: Command, uuid: str) -> str:
        found: str = await self._ask("put_probe", command=command, uuid=uuid)
        return found

    async def see_probe(self, uuid: str, probe: str) -> bool:
        found: bool = await self._ask("see_probe", uuid=uuid, probe=probe)
        return found

    async def remove_probe(self, command: Command, uuid: str, probe: str) -> None:
        await self._ask("remove_probe", command=command, uuid=uuid, probe=probe)

    async def check_room(self, command: Command, guest: GuestSpec) -> None:
        await self._ask("check_room", command=command, guest=guest)

    async def park(self, command: Command, uuid: str) -> None:
        await self._ask("park", command=command, uuid=uuid)

    async def unpark(self, command: Command, uuid: str) -> None:
        await self._ask("unpark", command=command, uuid=uuid)

    async def drop_parked(self, command: Command, uuid: str) -> None:
        await self._ask("drop_parked", command=command, uuid=uuid)

    async def adopt_parked(self, command: Command, guest: GuestSpec) -> None:
        await self._ask("adopt_parked", command=command, guest=guest)

    async def open_inbox(self, command: Command, guest: GuestSpec) -> Inbox:
        found: Inbox = await self._ask("open_inbox", command=command, guest=guest)
        return found

    async def send_files(self, command: Command, uuid: str, inbox: Inbox) -> None:
        await self._ask("send_files", command=command, uuid=uuid, inbox=inbox)

    async def close_inbox(self, command: Command, uuid: str) -> None:
        await self._ask("close_inbox", command=command, uuid=uuid)

    async def fit_disks(self, command: Command, guest: GuestSpec) -> None:
        await self._ask("fit_disks", command=command, guest=guest)

    async def check_arrival(self, command: Command, guest: GuestSpec, wish: LiveWish) -> ArrivalFacts:
        found: ArrivalFacts = await self._ask("check_arrival", command=command, guest=guest, wish=wish)
        return found

    async def check_departure(
        self, command: Command, guest: GuestSpec, wish: LiveWish, facts: ArrivalFacts
    ) -> LivePlan:
        found: LivePlan = await self._ask(
            "check_departure", command=command, guest=guest, wish=wish, facts=facts
        )
        return found

    async def receive_live(self, command: Command, guest: GuestSpec, plan: LivePlan) -> LivePlan:
        found: LivePlan = await self._ask("receive_live", command=command, guest=guest, plan=plan)
        return found

    async def send_live(self, command: Command, guest: GuestSpec, plan: LivePlan) -> LiveOutcome:
        found: LiveOutcome = await self._ask("send_live", command=command, guest=guest, plan=plan)
        return found

    async def steer_live(self, uuid: str, wish: str) -> bool:
        found: bool = await self._ask("steer_live", uuid=uuid, wish=wish)
        return found

    async def settle_live(self, command: Command, guest: GuestSpec) -> Observed:
        found: Observed = await self._ask("settle_live", command=command, guest=guest)
        return found

    async def leave_live(self, command: Command, uuid: str, plan: LivePlan) -> None:
        await self._ask("leave_live", command=command, uuid=uuid, plan=plan)
