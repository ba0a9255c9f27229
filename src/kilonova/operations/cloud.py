"""The collaborators of an operation, in one record that the composition root fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kilonova.clock import Clock
from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.db.engine import Database
from kilonova.model.instance import Instance
from kilonova.resources.claims import Claims
from kilonova.rpc.host import HostDirectory
from kilonova.services.identity.port import Identity
from kilonova.services.image.port import ImageService
from kilonova.services.network.port import NetworkService
from kilonova.services.placement.port import Placement
from kilonova.services.volume.port import VolumeService
from kilonova.settings import Settings

if TYPE_CHECKING:
    from kilonova.journal.journal import Journal
    from kilonova.operations.cells import Cells
    from kilonova.scheduler.select import Scheduler


@dataclass(slots=True)
class Cloud:
    """``db``, ``hosts`` and ``journal`` are those of one cell: servers, operations and migrations are there.
    All else is in the ``top`` database, which is the first cell's, too."""

    settings: Settings
    clock: Clock
    new_uuid: Callable[[], str]
    db: Database
    identity: Identity
    image: ImageService
    network: NetworkService
    placement: Placement
    volume: VolumeService
    hosts: HostDirectory
    scheduler: Scheduler
    journal: Journal
    # The server and its injected files -> path on the drive -> content
    config_drive: Callable[[Instance, tuple[tuple[str, bytes], ...]], dict[str, bytes]]
    claims: Claims = field(init=False)
    cells: Cells | None = None  # None: this is the only cell
    cell_uuid: str | None = None  # None: this is the first cell

    def __post_init__(self) -> None:
        self.claims = Claims.of_settings(self.settings, self.db, self.placement)

    @property
    def top(self) -> Database:
        return self.db if self.cells is None else self.cells.top

    @property
    def own_cells(self) -> frozenset[str] | None:
        """Where hosts for this cell's servers are; None: they are all there."""
        return None if self.cells is None else frozenset({self.cell_uuid or FIRST_CELL})

    async def of_server(self, uuid: str) -> Cloud:
        """The cloud as it is in the cell of a server.  Raises Unreachable for a cell that is unknown here."""
        return self if self.cells is None else await self.cells.of_server(uuid)
