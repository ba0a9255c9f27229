"""What the libvirt driver is told of live migration, by Nova's names in ``[libvirt]``."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import msgspec

from kilonova.errors import Failed

if TYPE_CHECKING:
    from kilonova.settings import Settings


class LiveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``uri`` is that of a destination's libvirtd with %s for its address; ``address`` is where this host
    takes in guests, empty for its name.  ``bandwidth``: MiB a second, ``downtime``: milliseconds; other
    times: seconds.

    ``unsafe``: send guests on a shared directory that libvirt does not know as one.
    """

    uri: str = ""
    scheme: str = "tcp"
    address: str = ""
    tunnelled: bool = False
    native_tls: bool = False
    bandwidth: int = 0
    downtime: int = 500
    downtime_steps: int = 10
    downtime_delay: int = 75
    completion_timeout: int = 800
    timeout_action: str = "abort"
    permit_post_copy: bool = False
    permit_auto_converge: bool = False
    unsafe: bool = False
    wait_for_plug: bool = True

    def libvirtd_of(self, address: str) -> str:
        """The URI of a destination's libvirtd."""
        template = self.uri or f"qemu+{'tls' if self.native_tls else self.scheme}://%s/system"
        return template.replace("%s", bracketed(address))


def live_options_from(settings: Settings) -> LiveOptions:
    """Raises Failed for those that make no sense."""
    number, text, flag = settings.number, settings.text, settings.flag
    prefix, group = "live_migration_", "libvirt"
    uri = text(f"{prefix}uri", group)
    if uri and "%s" not in uri:
        raise Failed(
            f"[libvirt]live_migration_uri = {uri}: it has to have a %s for the destination's address."
        )
    tunnelled, native = flag(f"{prefix}tunnelled", group), flag(f"{prefix}with_native_tls", group)
    if tunnelled and native:
        raise Failed(
            "[libvirt]live_migration_tunnelled and live_migration_with_native_tls exclude each other."
        )
    return LiveOptions(
        uri=uri,
        scheme=text(f"{prefix}scheme", group),
        address=text(f"{prefix}inbound_addr", group) or for_others(text("my_ip")),
        tunnelled=tunnelled,
        native_tls=native,
        bandwidth=number(f"{prefix}bandwidth", group),
        downtime=number(f"{prefix}downtime", group),
        downtime_steps=number(f"{prefix}downtime_steps", group),
        downtime_delay=number(f"{prefix}downtime_delay", group),
        completion_timeout=number(f"{prefix}completion_timeout", group),
        timeout_action=text(f"{prefix}timeout_action", group),
        permit_post_copy=flag(f"{prefix}permit_post_copy", group),
        permit_auto_converge=flag(f"{prefix}permit_auto_converge", group),
        unsafe=flag(f"{prefix}unsafe", group),
        wait_for_plug=flag(f"{prefix}wait_for_vif_plug", "compute"),
    )


def for_others(address: str) -> str:
    """The address, unless it is one at which a host reaches itself only."""
    try:
        return "" if ipaddress.ip_address(address).is_loopback else address
    except ValueError:
        return address


def bracketed(address: str) -> str:
    """As an address is written in a URI."""
    return f"[{address}]" if ":" in address else address
