"""Names, files and the DHCP server's configuration."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import HostFault, Invalid, NotFound, TryAgain
from kilonova.l2agent import datapath, dhcp, namespace
from kilonova.l2agent.answers import gathered
from kilonova.l2agent.files import write_whole
from kilonova.l2agent.options import L2Options
from kilonova.model.wiring import DhcpHost, DhcpSubnet, NetworkDetails

# ---- names ----


@given(st.text(max_size=80), st.sampled_from(["kn", "k", "z9"]))
def test_names_of_networks_are_always_names_of_devices(network_id: str, prefix: str) -> None:
    device = namespace.device_name(network_id, prefix)
    assert len(device) <= 15 and device.isascii() and device.isalnum()
    space = namespace.namespace_name(network_id, prefix)
    assert "/" not in space and space.startswith(f"{prefix}-") and len(space) <= 15


@given(st.uuids(), st.uuids())
def test_a_network_is_named_by_its_id(one: object, other: object) -> None:
    assert namespace.namespace_name(str(one)) == "kn-" + str(one).replace("-", "")[:12]
    assert (namespace.device_name(str(one)) == namespace.device_name(str(other))) == (
        str(one).replace("-", "")[:12] == str(other).replace("-", "")[:12]
    )


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".x", "a b", "a\n", "x" * 65, "$(id)", "a;b"])
async def test_what_is_no_name_is_refused_before_anything_is_done(name: str) -> None:
    for call in (
        namespace.create(name),
        namespace.remove(name),
        namespace.inside(name, int),
        namespace.adopt_device(name, "dev"),
        namespace.adopt_device("kn-none", name),
        namespace.set_addresses(name, "dev", [], 1500),
        namespace.set_addresses("kn-none", name, [], 1500),
    ):
        with pytest.raises(HostFault, match="is no name for a network namespace"):
            await call


async def test_a_namespace_that_is_not_there() -> None:
    assert not namespace.exists("kn-nowhere") and not namespace.is_whole("kn-nowhere")
    with pytest.raises(NotFound, match="no network namespace 'kn-nowhere'"):
        await namespace.inside("kn-nowhere", int)
    await namespace.remove("kn-nowhere")


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefix": "abc"},
        {"prefix": ""},
        {"prefix": "-"},
        {"bridge": "br int"},
        {"bridge": "x" * 16},
        {"datapath_type": "x"},
    ],
)
def test_options_that_cannot_be(wrong: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        L2Options(host="here", directory=Path("/nowhere"), **wrong)  # type: ignore[arg-type]


async def test_the_datapath_is_chosen_by_the_kernel_unless_it_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for wanted in ("system", "netdev"):
        assert await datapath.choose_datapath(wanted) == wanted
    for known, kind in ((True, "system"), (False, "netdev")):
        monkeypatch.setattr(datapath, "kernel_has_datapath", lambda known=known: known)
        assert await datapath.choose_datapath("auto") == kind


# ---- files ----


def test_a_file_is_replaced_as_a_whole_and_tells_whether_it_was_another(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    assert write_whole(path, "one")
    assert not write_whole(path, "one")
    held = path.open()
    assert write_whole(path, "two")
    assert held.read() == "one"  # whoever reads it reads one or the other
    held.close()
    assert path.read_text() == "two" and [each.name for each in tmp_path.iterdir()] == ["hosts"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


async def test_one_that_fails_holds_up_no_other() -> None:
    async def gives(value: int) -> int:
        return value

    async def fails(error: BaseException) -> int:
        raise error

    calls = {"a": gives(1), "b": fails(TryAgain("later")), "c": fails(OSError(28, "No space left"))}
    given_, failed = await gathered(calls)
    assert given_ == {"a": 1}
    assert str(failed["b"]) == "later" and isinstance(failed["c"], HostFault)
    assert "No space left" in str(failed["c"])
    with pytest.raises(asyncio.CancelledError):
        await gathered({"a": fails(asyncio.CancelledError())})


# ---- DHCP ----

SUBNET = DhcpSubnet(cidr="10.0.0.0/24", server="10.0.0.2", gateway="10.0.0.1")


def network(*subnets: DhcpSubnet, hosts: tuple[DhcpHost, ...] = ()) -> NetworkDetails:
    return NetworkDetails(network_id="net", vlan=1, mtu=1450, subnets=subnets, hosts=hosts)


def test_only_subnets_of_ipv4_with_dhcp_are_served() -> None:
    six = msgspec.structs.replace(SUBNET, cidr="fd00::/64", server="fd00::2")
    silent = msgspec.structs.replace(SUBNET, dhcp=False)
    assert dhcp.served(network(SUBNET, six, silent)) == [SUBNET]


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=20))
def test_nothing_that_a_user_writes_becomes_a_line_of_its_own(mac: str, address: str, hostname: str) -> None:
    """Hosts come from the network service, which checks them; here nothing is believed."""
    hosts = (DhcpHost(mac="fa:16:3e:00:00:01", address="10.0.0.5", hostname=hostname),)
    lines = dhcp.hosts(network(SUBNET, hosts=hosts)).splitlines()
    assert len(lines) == 1
    assert lines[0].split(",")[:2] == ["fa:16:3e:00:00:01", "10.0.0.5"]
    assert lines[0].split(",")[2:] in ([], [hostname])
    for wrong in ({"mac": mac}, {"address": address}):
        host = msgspec.structs.replace(hosts[0], **wrong)
        try:
            text = dhcp.hosts(network(SUBNET, hosts=(host,)))
        except Invalid:
            continue
        assert len(text.splitlines()) <= 1 and text.count(",") <= 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"server": "10.0.0.2\nport=53"},
        {"gateway": "nowhere"},
        {"dns": ("9.9.9.9,dhcp-script=/bin/sh",)},
        {"routes": (("10.1.0.0/16", "x"),)},
        {"routes": (("10.1.0.0/33", "10.0.0.9"),)},
        {"routes": (("fd00::/64", "10.0.0.9"),)},
        {"cidr": "10.0.0.0/x"},
    ],
)
def test_a_subnet_that_makes_no_sense_is_not_configured(wrong: dict[str, object]) -> None:
    bad = msgspec.structs.replace(SUBNET, **wrong)
    with pytest.raises(Invalid):
        dhcp.configuration(network(bad), "dev", Path("/x"), "novalocal")


@pytest.mark.parametrize("domain", ["a b", "a\nport=53", "-x.org", "a..b"])
def test_a_domain_that_is_none_is_not_configured(domain: str) -> None:
    with pytest.raises(Invalid, match="is no domain for DHCP"):
        dhcp.configuration(network(SUBNET), "dev", Path("/x"), domain)
