"""Ports on Open vSwitch, through os-vif."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from kilonova.errors import HostFault, KilonovaError, TryAgain
from kilonova.model.port import Vif
from kilonova.vif.library import OsVif, OsVifSettings, reason
from kilonova.vif.worker import Worker

log = structlog.get_logger("kilonova.vif")


class OsVifPlugger:
    """Implements plugger.VifPlugger.

    Ports are created isolated (in the dead VLAN, as a trunk); the layer-2 agent wires them.  Unplugging what
    is not there is no error, plugging again changes nothing and isolates nothing.
    """

    def __init__(
        self,
        ovsdb_connection: str,
        *,
        datapath_type: str = "system",
        timeout: float = 30.0,
        create_tap: bool = True,
    ) -> None:
        """``datapath_type`` holds for ports whose details name none.

        ``create_tap``: os-vif makes the tap as well, so the guest's interface is
        ``<target dev="tap..." managed="no"/>``; otherwise the hypervisor makes it when the guest starts.
        ``timeout``: seconds that one call may take.
        """
        self._settings = OsVifSettings(
            ovsdb_connection=ovsdb_connection,
            datapath_type=datapath_type,
            timeout=max(1, int(timeout * 2 / 3)),
            create_tap=create_tap,
        )
        self._timeout = timeout
        self._worker = Worker("os-vif")
        self._library: OsVif | None = None
        self._plugged: set[str] = set()  # by the last word of our callers

    async def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        """Create the port, isolated.  Raises HostFault with the reason."""
        _check(vif)
        self._plugged.add(vif.port_id)
        try:
            await self._call(
                lambda library: library.plug(vif, instance_uuid, instance_name), vif, instance_uuid
            )
        except TimeoutError:
            self._plugged.discard(vif.port_id)
            raise HostFault(
                f"Port {vif.port_id} was not plugged into {vif.bridge} within {self._timeout:g} seconds; "
                "does Open vSwitch answer on this host?"
            ) from None
        except KilonovaError as error:
            self._plugged.discard(vif.port_id)
            raise HostFault(f"Port {vif.port_id} cannot be plugged into {vif.bridge}: {error}") from error
        except Exception as error:
            self._plugged.discard(vif.port_id)
            raise HostFault(
                f"Port {vif.port_id} cannot be plugged into {vif.bridge}: {reason(error)}"
            ) from error

    async def unplug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        """Remove the port with what plug made beside it.  Raises TryAgain."""
        _check(vif)
        self._plugged.discard(vif.port_id)
        try:
            await self._call(
                lambda library: library.unplug(vif, instance_uuid, instance_name), vif, instance_uuid
            )
        except TimeoutError:
            raise TryAgain(
                f"Port {vif.port_id} was not unplugged from {vif.bridge} within {self._timeout:g} seconds; "
                "does Open vSwitch answer on this host?"
            ) from None
        except KilonovaError as error:
            raise TryAgain(f"Port {vif.port_id} cannot be unplugged from {vif.bridge}: {error}") from error
        except Exception as error:
            raise TryAgain(
                f"Port {vif.port_id} cannot be unplugged from {vif.bridge}: {reason(error)}"
            ) from error

    async def close(self) -> None:
        await self._worker.close()

    async def _call(self, verb: Callable[[OsVif], None], vif: Vif, instance_uuid: str) -> None:
        used: list[OsVif] = []

        def work() -> None:
            library = self._library
            if library is None:
                library = self._library = OsVif(self._settings)
            used.append(library)
            verb(library)

        def late() -> None:
            """A plug that comes after it was given up leaves nothing, unless it is wanted again."""
            if vif.port_id in self._plugged or not used:
                return
            try:
                used[0].unplug(vif, instance_uuid, "")
            except Exception as error:  # noqa: BLE001  # nobody is left to tell; the port stays isolated
                log.warning("a late port could not be removed", port=vif.port_id, error=reason(error))

        try:
            await self._worker.call(work, self._timeout, late)
        except TimeoutError:
            self._library = None  # its connection may be what hangs
            raise


def _check(vif: Vif) -> None:
    if vif.vif_type != "ovs":
        raise HostFault(
            f"Port {vif.port_id} is bound as '{vif.vif_type}', and this host plugs only 'ovs'; "
            "is a layer-2 agent running on it?"
        )
