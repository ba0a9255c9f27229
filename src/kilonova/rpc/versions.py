"""Which messages two sides can say to each other.

Records change by addition only (``rpc.lock`` lists them, and a test holds the code against it).  An agent
tells its version when it reports; a controller never sends it what is newer.  Agents of the release before
this one are served, older ones are refused with the reason.
"""

from __future__ import annotations

import re

from kilonova.errors import HostFault, Invalid
from kilonova.rpc import wire
from kilonova.rpc.mover import Mover

VERSION = "1.2"
OLDEST = "1.0"  # that this release still serves

RELEASES = {"0.1": "1.0", "0.2": "1.1", "0.3": "1.2"}
"""Names that ``[upgrade_levels]compute`` may have for a version, as Nova takes names of releases."""

SINCE: dict[str, str] = {
    "GuestSpec.numa": "1.1",
    "GuestSpec.pci": "1.1",
    "GuestSpec.flat_root": "1.2",
    "GuestSpec.volumes": "1.2",
    "snapshot": "1.2",
    "upload_snapshot": "1.2",
    "drop_snapshot": "1.2",
    "attach_interface": "1.2",
    "detach_interface": "1.2",
    "attach_volume": "1.2",
    "detach_volume": "1.2",
    **dict.fromkeys(wire.verbs_of(Mover), "1.2"),
}
"""What came after 1.0: verbs, and fields that mean something only to who knows them."""


def parsed(version: str) -> tuple[int, int]:
    """Raises Invalid."""
    found = re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,6})", version)
    if found is None:
        raise Invalid(f"'{version}' is no version of messages, which is like '{VERSION}'.")
    return int(found[1]), int(found[2])


def pinned(option: str) -> str | None:
    """What ``[upgrade_levels]compute`` says: a version, the name of a release, ``auto`` or nothing (None).

    Raises Invalid for what is neither, and for what this release does not know.
    """
    if option in ("", "auto"):
        return None
    version = RELEASES.get(option, option)
    if not parsed(OLDEST) <= parsed(version) <= parsed(VERSION):
        raise Invalid(
            f"[upgrade_levels]compute is '{option}': this release speaks {OLDEST} to {VERSION} "
            f"(releases {', '.join(RELEASES)})."
        )
    return version


def check_agent(host: str, version: str) -> None:
    """Raises Invalid for an agent with which this release cannot work."""
    if parsed(version)[0] != parsed(VERSION)[0] or parsed(version) < parsed(OLDEST):
        raise Invalid(
            f"The agent of host '{host}' speaks version {version} of our messages, this controller "
            f"{OLDEST} to {VERSION}: upgrade the agent, or take a controller of its release."
        )


def usable(version: str, pin: str | None) -> str:
    """The version that can be spoken with an agent that knows ``version``."""
    known = [VERSION, version] if pin is None else [VERSION, version, pin]
    return min(known, key=parsed)


def require(host: str, version: str, what: str) -> None:
    """Raises HostFault if ``what`` (a verb, or Record.field) is newer than what can be spoken to the host."""
    needed = SINCE.get(what)
    if needed is not None and parsed(needed) > parsed(version):
        raise HostFault(
            f"The agent of host '{host}' can be spoken to in version {version}, and '{what}' needs {needed}: "
            "upgrade it, or raise [upgrade_levels]compute."
        )
