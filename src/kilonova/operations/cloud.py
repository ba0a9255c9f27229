"""The collaborators of an operation, in one record that the composition root fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kilonova.clock import Clock
from kilonova.db.engine import Database
from kilonova.model.instance import Instance
from kilonova.resources.claims import Claims
from kilonova.rpc.host import HostDirectory
from kilonova.services.identity.port import Identity
from kilonova.services.image.port import ImageService
from kilonova.services.network.port import NetworkService
from kilonova.services.placement.port import Placement
from kilonova.settings import Settings

if TYPE_CHECKING:
    from kilonova.journal.journal import Journal
    from kilonova.scheduler.select import Scheduler


@dataclass(slots=True)
class Cloud:
    settings: Settings
    clock: Clock
    new_uuid: Callable[[], str]
    db: Database
    identity: Identity
    image: ImageService
    network: NetworkService
    placement: Placement
    hosts: HostDirectory
    scheduler: Scheduler
    journal: Journal
    # The server and its injected files -> path on the drive -> content
    config_drive: Callable[[Instance, tuple[tuple[str, bytes], ...]], dict[str, bytes]]
    claims: Claims = field(init=False)

    def __post_init__(self) -> None:
        self.claims = Claims.of_settings(self.settings, self.db, self.placement)
