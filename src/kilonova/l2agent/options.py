"""What an agent is told about its host."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import msgspec

from kilonova.errors import Invalid

_NAME = re.compile(r"[a-z][a-z0-9]?")
_BRIDGE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,14}")


class L2Options(msgspec.Struct, frozen=True, kw_only=True):
    """``directory`` holds what has to outlive the process: DHCP files, and who owns them.

    ``prefix`` (at most 2 characters, e.g. "kn") begins the names of namespaces and devices.  Raises Invalid
    for names that cannot be ones of devices.
    """

    host: str
    directory: Path
    bridge: str = "br-int"
    datapath_type: str = "auto"  # or "system", "netdev"
    dhcp_domain: str = "novalocal"
    prefix: str = "kn"
    local_ip: str = ""  # IPv4: where tunnels of other hosts end here; without it there are no tunnels
    vxlan_port: int = 4789
    compare_interval: float = 60.0  # seconds between two comparisons of everything

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.prefix):
            raise Invalid(f"'{self.prefix}' is no prefix for devices: one or two of a-z and 0-9.")
        if not _BRIDGE.fullmatch(self.bridge):
            raise Invalid(f"'{self.bridge}' is no name for a bridge.")
        if self.datapath_type not in ("auto", "system", "netdev"):
            raise Invalid(f"datapath_type '{self.datapath_type}' is neither auto, system nor netdev.")
        try:
            ipaddress.IPv4Address(self.local_ip or "0.0.0.0")
        except ValueError:
            raise Invalid(f"local_ip '{self.local_ip}' is no IPv4 address.") from None
