"""What operators choose about lists over cells: options of [api] and [database]."""

from __future__ import annotations

import msgspec

from kilonova.settings import Settings

SMALLEST_BATCH = 100
OVERHEAD = 1.10  # of the even share, so that most lists need one batch of each cell
DISTRIBUTED, FIXED = "distributed", "fixed"


class ListOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults are Nova's.  ``time_limit``: seconds that a cell has."""

    strategy: str = DISTRIBUTED
    fixed_size: int = 100
    per_project_cells: bool = False
    skip_down_cells: bool = True
    max_limit: int = 1000
    time_limit: float = 60.0

    @classmethod
    def of(cls, settings: Settings) -> ListOptions:
        return cls(
            strategy=settings.text("instance_list_cells_batch_strategy", "api"),
            fixed_size=settings.number("instance_list_cells_batch_fixed_size", "api"),
            per_project_cells=settings.flag("instance_list_per_project_cells", "api"),
            skip_down_cells=settings.flag("list_records_by_skipping_down_cells", "api"),
            max_limit=settings.number("max_limit", "api"),
            time_limit=settings.real("cell_timeout", "api"),
        )

    def batch_size(self, limit: int | None, cells: int) -> int:
        """How many servers a cell is asked for at a time (IL-4, IL-5)."""
        wanted = limit or self.max_limit
        if cells <= 1:
            return wanted
        share = self.fixed_size if self.strategy == FIXED else int(wanted / cells * OVERHEAD)
        return max(min(share, wanted), SMALLEST_BATCH)
