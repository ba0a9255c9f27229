"""os-vif in this process: set up once, called from one thread.

Importing it takes 0.7 seconds and 65 MiB (it brings oslo.versionedobjects, oslo.messaging and eventlet), so
it is imported by the first call, in the thread that makes it.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import msgspec

from kilonova.errors import HostFault
from kilonova.model.port import Vif

HYBRID_BRIDGE = "qbr"
_NAME_LENGTH = 14


class OsVifSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``timeout``: whole seconds that a change of the switch's database may take."""

    ovsdb_connection: str
    datapath_type: str
    mtu: int = 1500
    timeout: int = 20
    create_tap: bool = True


class OsVif:
    """The library, initialised.  All calls block; all have to come from the thread that made this."""

    def __init__(self, settings: OsVifSettings) -> None:
        """Raises HostFault if os-vif is not installed or too old."""
        self._settings = settings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # eventlet's and oslo's own deprecations
            self._load()

    def _load(self) -> None:
        try:
            import os_vif
            import os_vif.objects
            from oslo_config import cfg
        except ImportError as error:
            raise HostFault(
                f"os-vif is not installed on this host: {error}. Install kilonova[libvirt]."
            ) from None
        self._os_vif = os_vif
        os_vif.initialize()  # registers the groups of options
        options = {
            "isolate_vif": True,
            "ovsdb_connection": self._settings.ovsdb_connection,
            "ovs_vsctl_timeout": self._settings.timeout,
            "network_device_mtu": self._settings.mtu,
        }
        for name, value in options.items():
            cfg.CONF.set_override(name, value, group="os_vif_ovs")
        os_vif.initialize(reset=True)  # the plugin copied the options when it was built
        if os.geteuid() == 0:
            from vif_plug_ovs import privsep

            privsep.vif_plug.set_client_mode(False)  # root already: no daemon beside us
        self._objects = os_vif.objects
        if "trunks" not in _arguments():
            raise HostFault(
                "This os-vif is older than 4.1 and cannot isolate unwired ports; install a newer one."
            )
        if self._settings.create_tap and "create_tap" not in _profile_fields():
            raise HostFault("This os-vif cannot make taps; install 5.3 or a newer one.")

    def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        """Raises os_vif.exception.PlugException."""
        self._os_vif.plug(self.translate(vif), self._instance(instance_uuid, instance_name))

    def unplug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        """Raises os_vif.exception.UnplugException."""
        self._os_vif.unplug(self.translate(vif), self._instance(instance_uuid, instance_name))

    def _instance(self, uuid: str, name: str) -> Any:
        return self._objects.instance_info.InstanceInfo(uuid=uuid, name=name)

    def translate(self, vif: Vif) -> Any:
        """The os-vif object of a port.

        ``delegate_create`` becomes the profile's ``create_port``, for plain ports only: with hybrid plug the
        guest is on a Linux bridge, and os-vif makes the switch's port in any case.
        """
        objects = self._objects
        hybrid = is_hybrid(vif)
        profile = objects.vif.VIFPortProfileOpenVSwitch(
            interface_id=vif.port_id,
            # never left out: os-vif would write "system" to the bridge and cut off every guest on netdev
            datapath_type=str(vif.details.get("datapath_type") or self._settings.datapath_type),
            create_port=vif.delegate_create and not hybrid,
        )
        if makes_tap(vif, self._settings):
            profile.create_tap = True
            profile.multiqueue = bool(vif.details.get("multiqueue", False))
        network = objects.network.Network(
            id=vif.network_id,
            bridge=vif.bridge,
            mtu=vif.mtu,
            subnets=objects.subnet.SubnetList(objects=[]),
        )
        common = {
            "id": vif.port_id,
            "address": vif.mac,
            "network": network,
            "plugin": "ovs",
            "port_profile": profile,
            "vif_name": vif.devname,
            "active": True,
            "preserve_on_delete": vif.preserve_on_delete,
            "has_traffic_filtering": True,
        }
        if hybrid:
            name = (HYBRID_BRIDGE + vif.port_id)[:_NAME_LENGTH]
            return objects.vif.VIFBridge(bridge_name=name, **common)
        return objects.vif.VIFOpenVSwitch(bridge_name=vif.bridge, **common)


def _arguments() -> tuple[str, ...]:
    from vif_plug_ovs.ovsdb import ovsdb_lib

    code = ovsdb_lib.BaseOVS.create_ovs_vif_port.__code__
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return names


def _profile_fields() -> frozenset[str]:
    from os_vif.objects.vif import VIFPortProfileOpenVSwitch

    return frozenset(VIFPortProfileOpenVSwitch.fields)


def is_hybrid(vif: Vif) -> bool:
    """Whether a Linux bridge is between the guest and the switch, for filters in iptables."""
    return bool(vif.details.get("ovs_hybrid_plug", False))


def makes_port(vif: Vif) -> bool:
    """Whether plug creates the switch's port, and not the hypervisor later."""
    return vif.delegate_create or is_hybrid(vif)


def makes_tap(vif: Vif, settings: OsVifSettings) -> bool:
    """Whether plug creates the guest's tap as well."""
    return settings.create_tap and vif.delegate_create and not is_hybrid(vif)


def reason(error: BaseException) -> str:
    """What really went wrong: os-vif wraps it in an exception that tells the whole port."""
    cause = getattr(error, "kwargs", {}).get("err", error)
    if type(cause).__name__ == "TimeoutException":  # its text is all that was to be done
        return "Open vSwitch did not do it in time."
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
