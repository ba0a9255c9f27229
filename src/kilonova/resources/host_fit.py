"""Whether a host can take a server's cells and devices, and which it would get: pure.

The scheduler asks it of a view, and `kilonova.resources.claims` again in the transaction that books.
"""

from __future__ import annotations

import msgspec

from kilonova.model.host_resources import Claim, HostResources, Wanted
from kilonova.model.numa import GuestTopology, HostTopology
from kilonova.model.pci import PciDevice, PciHolding, PciRequest
from kilonova.resources import numa_fit, pci_fit
from kilonova.resources.numa_fit import DoesNotFit


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """What the server gets."""

    numa: GuestTopology | None = None
    holdings: tuple[PciHolding, ...] = ()
    devices: tuple[PciDevice, ...] = ()


NOTHING = Fitted()
NOT_NEAR = "no free devices are near the server's NUMA cells"
NO_TOPOLOGY = "the host reports no NUMA topology, and the server needs one"


def fit_host(host: HostResources, wanted: Wanted, *, packing: bool = False) -> Fitted:
    """Raises DoesNotFit with all reasons, joined by "; "."""
    if wanted.nothing:
        return NOTHING
    free = pci_fit.free_devices(host.devices)
    try:
        numa = wanted.numa and _fit_cells(host, wanted, free, packing)
    except DoesNotFit as error:
        raise _all_reasons(host, wanted, error) from error
    holdings = _devices(host.topology, wanted, free, _cells(numa))
    if holdings is None:  # of a server without cells: those with cells were put where their devices fit
        raise DoesNotFit(str(_missing_devices(host, wanted)))
    taken = {address for holding in holdings for address in holding.addresses}
    devices = tuple(device for device in free if device.address in taken)
    return Fitted(numa=numa, holdings=holdings, devices=devices)


def fit_more(host: HostResources, claim: Claim, requests: tuple[PciRequest, ...]) -> Fitted:
    """Devices for who has a claim there already, near its cells.  Raises DoesNotFit."""
    wanted = Wanted(pci=requests)
    free = pci_fit.free_devices(host.devices)
    holdings = _devices(host.topology, wanted, free, _cells(claim.numa))
    if holdings is None:
        raise DoesNotFit(_missing_devices(host, wanted) or NOT_NEAR)
    taken = {address for holding in holdings for address in holding.addresses}
    return Fitted(holdings=holdings, devices=tuple(each for each in free if each.address in taken))


def _all_reasons(host: HostResources, wanted: Wanted, error: DoesNotFit) -> DoesNotFit:
    """What is wrong of devices and of cells, each for itself, and if it is neither, of both together."""
    reasons = [each for each in (_missing_devices(host, wanted), _missing_cells(host, wanted)) if each]
    return DoesNotFit("; ".join(reasons)) if reasons else error


def _missing_devices(host: HostResources, wanted: Wanted) -> str | None:
    """CL-5: whether there are devices for all requests, wherever they are."""
    if not wanted.pci:
        return None
    if pci_fit.choose(pci_fit.free_devices(host.devices), wanted.pci) is not None:
        return None
    names = ", ".join(f"{each.count} of {each.alias or 'port ' + str(each.port_id)}" for each in wanted.pci)
    return f"claim of PCI devices failed: {names} wanted, and not as many are free"


def _missing_cells(host: HostResources, wanted: Wanted) -> str | None:
    """CL-6: whether the cells fit, without regard to devices."""
    if wanted.numa is None:
        return None
    if host.topology is None:
        return NO_TOPOLOGY
    use = numa_fit.use_of(host.guests)
    try:
        numa_fit.fit(host.topology, use, wanted.numa, wanted.limits)
    except DoesNotFit as error:
        return f"the requested NUMA topology does not fit the host's: {error}"
    return None


def _cells(numa: GuestTopology | None) -> frozenset[int] | None:
    if numa is None:
        return None
    return frozenset(cell.host_cell for cell in numa.cells if cell.host_cell is not None)


def _devices(
    topology: HostTopology | None, wanted: Wanted, free: list[PciDevice], cells: frozenset[int] | None
) -> tuple[PciHolding, ...] | None:
    if not wanted.pci:
        return ()
    return pci_fit.choose(free, wanted.pci, pci_fit.Nearness(topology, cells))


def _fit_cells(host: HostResources, wanted: Wanted, free: list[PciDevice], packing: bool) -> GuestTopology:
    """The cells, where devices and networks are near as they must be.  Raises DoesNotFit."""
    topology, numa = host.topology, wanted.numa
    if topology is None or numa is None:
        raise DoesNotFit(NO_TOPOLOGY)
    use = numa_fit.use_of(host.guests)
    near = pci_fit.wanted_cells(free, wanted.pci)
    spare = (
        frozenset()
        if wanted.pci
        else frozenset(each.numa_cell for each in free if each.numa_cell is not None)
    )

    def acceptable(cells: frozenset[int]) -> bool:
        return _networks_near(topology, wanted, cells) and _devices(topology, wanted, free, cells) is not None

    order = numa_fit.preferred(topology, use, numa, packing=packing, first=near, last=spare)
    try:
        return numa_fit.fit(topology, use, numa, wanted.limits, order=order, acceptable=acceptable)
    except DoesNotFit as error:
        together = " together with the requested PCI devices" if wanted.pci else ""
        raise DoesNotFit(f"the requested NUMA topology{together} does not fit the host's: {error}") from error


def _networks_near(topology: HostTopology, wanted: Wanted, cells: frozenset[int]) -> bool:
    """Each network that the host knows to be near some of its cells is near one of these."""
    for name in wanted.physical_networks:
        near = {cell.id for cell in topology.cells if name in cell.physical_networks}
        if near and not near & cells:
            return False
    near = {cell.id for cell in topology.cells if cell.tunnels}
    return not (wanted.tunneled and near and not near & cells)
