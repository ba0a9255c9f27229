"""What an operator may choose of placement, by the names of placement.conf's group ``placement``."""

from __future__ import annotations

from typing import Literal

import msgspec

NOBODY = "00000000-0000-0000-0000-000000000000"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """``most``: allocation candidates that are made for one request at most, negative for any number."""

    randomize: bool = False  # randomize_allocation_candidates
    most: int = 10_000  # max_allocation_candidates
    strategy: Literal["depth-first", "breadth-first"] = "depth-first"
    nobodys_project: str = NOBODY  # incomplete_consumer_project_id
    nobodys_user: str = NOBODY  # incomplete_consumer_user_id
