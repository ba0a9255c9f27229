"""Ports as os-vif's objects."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import HostFault
from kilonova.model.port import Vif
from kilonova.vif.library import OsVif, OsVifSettings, makes_port, reason

PORT = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"


@pytest.fixture(scope="module")
def library() -> OsVif:
    """In a thread of its own, as in the plugger: it imports eventlet."""
    made: list[OsVif] = []
    settings = OsVifSettings(ovsdb_connection="tcp:127.0.0.1:6640", datapath_type="netdev")
    thread = threading.Thread(target=lambda: made.append(OsVif(settings)), daemon=True)
    thread.start()
    for _ in range(600):
        thread.join(0.1)
        if made:
            return made[0]
    raise AssertionError("os-vif is not loaded after a minute")


def vif(**more: Any) -> Vif:
    plain = Vif(
        port_id=PORT,
        mac="fa:16:3e:00:00:01",
        network_id="6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        network_name="net",
        mtu=1442,
        details={"datapath_type": "netdev"},
    )
    return msgspec.structs.replace(plain, **more)


@pytest.mark.capability("OVS-2", "OVS-6", "OVS-12")
def test_a_plain_port_is_created_by_os_vif_with_its_tap(library: OsVif) -> None:
    made = library.translate(vif())
    assert type(made).__name__ == "VIFOpenVSwitch"
    assert (made.id, made.address, made.vif_name, made.bridge_name) == (
        PORT,
        "fa:16:3e:00:00:01",
        "tap0f1e2d3c-4b",
        "br-int",
    )
    assert (made.network.bridge, made.network.mtu, made.plugin) == ("br-int", 1442, "ovs")
    profile = made.port_profile
    assert (profile.interface_id, profile.create_port, profile.create_tap) == (PORT, True, True)
    assert (profile.datapath_type, profile.multiqueue) == ("netdev", False)
    many = library.translate(vif(details={"multiqueue": True})).port_profile
    assert many.multiqueue is True
    assert many.datapath_type == "netdev"  # the host's: os-vif would write "system" to the bridge


@pytest.mark.capability("OVS-1", "OVS-2")
@given(st.booleans(), st.booleans())
def test_delegation_is_for_plain_ports_only(library: OsVif, delegate: bool, hybrid: bool) -> None:
    port = vif(delegate_create=delegate, details={"ovs_hybrid_plug": hybrid})
    made = library.translate(port)
    assert made.port_profile.create_port == (delegate and not hybrid)
    assert ("create_tap" in made.port_profile) == (delegate and not hybrid)
    assert type(made).__name__ == ("VIFBridge" if hybrid else "VIFOpenVSwitch")
    assert made.bridge_name == ("qbr0f1e2d3c-4b" if hybrid else "br-int")
    assert makes_port(port) == (delegate or hybrid)


@pytest.mark.capability("OVS-1", "OVS-25")
def test_delegation_is_a_part_of_what_a_port_is() -> None:
    """A port is built delegated; one that is not stays so through JSON and is another port.

    (Nova reads old data without the flag as not delegated; there was never a port of ours without it.)
    """
    plain = vif()
    assert plain.delegate_create is True
    for port in (plain, vif(delegate_create=False)):
        assert msgspec.json.decode(msgspec.json.encode(port), type=Vif) == port
    assert plain != vif(delegate_create=False)


@pytest.mark.capability("OVS-19")
def test_a_port_that_never_had_details_or_a_profile_has_empty_ones() -> None:
    data = msgspec.to_builtins(vif())
    del data["details"], data["profile"]
    old = msgspec.convert(data, Vif)
    assert (old.details, old.profile) == ({}, {})


@pytest.mark.capability("OVS-9")
def test_os_vif_is_set_as_the_host_is(library: OsVif) -> None:
    from oslo_config import cfg

    options = cfg.CONF.os_vif_ovs
    assert options.isolate_vif is True  # the layer-2 agent is ours, and lifts it
    assert options.ovsdb_connection == "tcp:127.0.0.1:6640"
    assert options.ovs_vsctl_timeout == 20
    assert options.network_device_mtu == 1500


@pytest.mark.capability("OVS-5")
def test_an_os_vif_that_cannot_isolate_is_refused(library: OsVif, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nova needs 1.15.2; that one gives two unwired guests the same VLAN, in which they reach each other."""
    monkeypatch.setattr("kilonova.vif.library._arguments", lambda: ("bridge", "dev", "tag"))
    with pytest.raises(HostFault, match=r"older than 4\.1 and cannot isolate"):
        OsVif(OsVifSettings(ovsdb_connection="tcp:127.0.0.1:6640", datapath_type="netdev"))


def test_an_os_vif_that_makes_no_taps_is_refused_if_it_is_to_make_them(
    library: OsVif, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kilonova.vif.library._profile_fields", lambda: frozenset({"create_port"}))
    settings = OsVifSettings(ovsdb_connection="tcp:127.0.0.1:6640", datapath_type="netdev")
    with pytest.raises(HostFault, match="cannot make taps"):
        OsVif(settings)
    OsVif(msgspec.structs.replace(settings, create_tap=False))


def test_the_reason_is_what_went_wrong_and_not_the_whole_port() -> None:
    class PlugException(Exception):
        def __init__(self, err: Exception) -> None:
            super().__init__("Failed to plug VIF VIFOpenVSwitch(active=True, ...)")
            self.kwargs = {"err": err}

    class TimeoutException(Exception):
        pass

    assert reason(PlugException(OSError(19, "No such device"))) == "OSError: [Errno 19] No such device"
    assert reason(PlugException(ValueError())) == "ValueError"
    assert reason(RuntimeError("plain")) == "RuntimeError: plain"
    assert reason(PlugException(TimeoutException("Commands [AddPortCommand(...)]"))) == (
        "Open vSwitch did not do it in time."
    )
