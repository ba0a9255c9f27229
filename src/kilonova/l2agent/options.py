"""What an agent is told about its host."""

from __future__ import annotations

from pathlib import Path

import msgspec


class L2Options(msgspec.Struct, frozen=True, kw_only=True):
    """``directory`` holds what has to outlive the process: DHCP files, and who owns them.

    ``prefix`` (at most 2 characters, e.g. "kn") begins the names of namespaces and devices.
    """

    host: str
    directory: Path
    bridge: str = "br-int"
    datapath_type: str = "auto"  # or "system", "netdev"
    dhcp_domain: str = "novalocal"
    prefix: str = "kn"
    compare_interval: float = 60.0  # seconds between two comparisons of everything
