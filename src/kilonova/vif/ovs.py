"""Ports on Open vSwitch, through os-vif."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kilonova.errors import HostFault, KilonovaError, TryAgain
from kilonova.model.port import Vif
from kilonova.vif import link
from kilonova.vif.database import SwitchDatabase
from kilonova.vif.library import OsVif, OsVifSettings, makes_port, makes_tap, reason
from kilonova.vif.worker import Worker

log = structlog.get_logger("kilonova.vif")

TRUNK_BRIDGE = "tbr"  # Neutron's name of bridges that are a port's own; os-vif isolates nothing there
_LOOK = 10.0  # seconds in which the switch has to say anything at all


class OsVifPlugger:
    """Implements plugger.VifPlugger.

    Ports are created isolated (in the dead VLAN, as a trunk); the layer-2 agent wires them.  Unplugging what
    is not there is no error, plugging again changes nothing; of what is there only a port that has lost its
    device, as all have when their host was booted, is isolated anew.  A plug that fails leaves nothing of a
    port that was not there before, as far as the switch can still be reached.
    """

    def __init__(
        self,
        ovsdb_connection: str,
        *,
        datapath_type: str = "system",
        timeout: float = 30.0,
        create_tap: bool = True,
        load: Callable[[OsVifSettings], OsVif] = OsVif,
    ) -> None:
        """``datapath_type`` holds for ports whose details name none.

        ``create_tap``: os-vif makes the tap as well, so the guest's interface is
        ``<target dev="tap..." managed="no"/>``; otherwise the hypervisor makes it when the guest starts.
        ``timeout``: seconds that one call of os-vif may take.  ``load`` makes the library, in its thread.
        """
        self._settings = OsVifSettings(
            ovsdb_connection=ovsdb_connection,
            datapath_type=datapath_type,
            timeout=max(1, int(timeout * 2 / 3)),
            create_tap=create_tap,
        )
        self._timeout = timeout
        self._load = load
        self._database = SwitchDatabase(ovsdb_connection, min(_LOOK, timeout))
        self._worker = Worker("os-vif")
        self._turn = asyncio.Lock()  # one at a time looks, too: the switch accepts few connections at once
        self._library: OsVif | None = None
        self._plugged: set[str] = set()  # by the last word of our callers

    async def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        """Create the port, isolated.  Raises HostFault with the reason."""
        _check(vif)
        self._plugged.add(vif.port_id)
        try:
            async with self._turn:
                await self._plug(vif, instance_uuid, instance_name)
        except TimeoutError:
            self._plugged.discard(vif.port_id)
            raise HostFault(
                f"Port {vif.port_id} was not plugged into {vif.bridge} within {self._timeout:g} seconds; "
                "does Open vSwitch answer on this host?"
            ) from None
        except Exception as error:
            self._plugged.discard(vif.port_id)
            said = str(error) if isinstance(error, KilonovaError) else reason(error)
            raise HostFault(f"Port {vif.port_id} cannot be plugged into {vif.bridge}: {said}") from error

    async def _plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        await self._database.check_switch(vif.bridge)
        is_new = not await self._database.has_port(vif)
        if not is_new and not vif.bridge.startswith(TRUNK_BRIDGE):
            await self._database.isolate_idle(vif)

        def plug(library: OsVif) -> None:
            try:
                library.plug(vif, instance_uuid, instance_name)
            except BaseException:
                if is_new:
                    self._undo(library, vif, instance_uuid)
                raise

        await self._call(plug, vif, instance_uuid)
        try:
            await self._confirm(vif)
        except KilonovaError:
            if is_new:
                await self._call(lambda library: self._undo(library, vif, instance_uuid), vif, instance_uuid)
            raise

    async def _confirm(self, vif: Vif) -> None:
        """Look for what os-vif says it has made.

        A tap may be down although os-vif has set it up: the switch, which opens it at the same moment, reads
        its flags, adds one and writes them back.
        """
        if makes_port(vif) and not await self._database.has_port(vif):
            raise HostFault("os-vif found no fault, but Open vSwitch does not have the port.")
        if makes_tap(vif, self._settings):
            await self._database.device_is_taken(vif.devname)
            if not link.is_up(vif.devname):
                log.info("the tap was down", port=vif.port_id, device=vif.devname)
                await link.set_up(vif.devname)

    async def unplug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        """Remove the port with what plug made beside it.  Raises TryAgain."""
        _check(vif)
        self._plugged.discard(vif.port_id)
        try:
            async with self._turn:
                await self._unplug(vif, instance_uuid, instance_name)
        except TimeoutError:
            raise TryAgain(
                f"Port {vif.port_id} was not unplugged from {vif.bridge} within {self._timeout:g} seconds; "
                "does Open vSwitch answer on this host?"
            ) from None
        except Exception as error:
            said = str(error) if isinstance(error, KilonovaError) else reason(error)
            raise TryAgain(f"Port {vif.port_id} cannot be unplugged from {vif.bridge}: {said}") from error

    async def _unplug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        await self._database.has_port(vif)  # before the tap goes: whether it can be done at all
        await self._call(
            lambda library: library.unplug(vif, instance_uuid, instance_name), vif, instance_uuid
        )
        if await self._database.has_port(vif):
            raise TryAgain("os-vif found no fault, but Open vSwitch still has the port.")

    async def close(self) -> None:
        """Wait for a call that is under way, a few seconds at most."""
        await self._worker.close()

    async def _call(self, verb: Callable[[OsVif], None], vif: Vif, instance_uuid: str) -> None:
        used: list[OsVif] = []

        def work() -> None:
            library = self._library
            if library is None:
                library = self._library = self._load(self._settings)
            used.append(library)
            verb(library)

        def late() -> None:
            """A plug that comes after it was given up leaves nothing, unless it is wanted again."""
            if vif.port_id not in self._plugged and used:
                self._undo(used[0], vif, instance_uuid)

        try:
            await self._worker.call(work, self._timeout, late)
        except (TimeoutError, asyncio.CancelledError):
            self._library = None  # its connection may be what hangs, and its thread is not ours any more
            raise

    def _undo(self, library: OsVif, vif: Vif, instance_uuid: str) -> None:
        """In the library's thread."""
        try:
            library.unplug(vif, instance_uuid, "")
        except Exception as error:  # noqa: BLE001  # nobody is left to tell; the port stays isolated
            log.warning("a late port could not be removed", port=vif.port_id, error=reason(error))


def _check(vif: Vif) -> None:
    if vif.vif_type != "ovs":
        raise HostFault(
            f"Port {vif.port_id} is bound as '{vif.vif_type}', and this host plugs only 'ovs'; "
            "is a layer-2 agent running on it?"
        )
