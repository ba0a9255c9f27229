"""Serving metadata to the guests of this host: one small server on a socket inside each network."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from kilonova.db import instances
from kilonova.db.engine import Database, Tx
from kilonova.model.instance import Instance
from kilonova.services.metadata import api
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.settings import Settings
from kilonova.web.server import HttpServer

PIECE = 255  # characters of a value of system_metadata, in which Nova keeps a password


class GuestMetadata:
    """``serve`` is what a layer-2 agent calls for each network that it makes."""

    def __init__(self, db: Database, network: BuiltinNetwork, settings: Settings) -> None:
        self._db = db
        self._network = network
        self._settings = api.MetadataSettings(
            dhcp_domain=settings.text("dhcp_domain"),
            availability_zone=settings.text("default_availability_zone"),
        )

    async def serve(self, network_id: str, listening: socket.socket) -> Callable[[], Awaitable[None]]:
        """Answer on ``listening``; what is returned ends that."""
        app = api.app(self._find, network_id, settings=self._settings, store_password=self._store)
        server = HttpServer(app, [listening])
        await server.start()
        return server.stop

    async def _find(self, network_id: str, address: str) -> Instance | None:
        uuid = await self._network.find_instance(network_id, address)
        if uuid is None:
            return None
        return await self._db.read(lambda tx: instances.show(tx, uuid))

    async def _store(self, instance: Instance, password: str) -> None:
        """Keep the password that the guest has told, encrypted as it is, in pieces as Nova does."""

        def write(tx: Tx) -> None:
            found = instances.show(tx, instance.uuid)
            if found is not None:
                pieces = {
                    f"password_{number}": password[number * PIECE : (number + 1) * PIECE]
                    for number in range(4)
                }
                kept = {**found.system_metadata, **pieces}
                instances.update(tx, instance.uuid, expect_task=instances.ANY, system_metadata=kept)

        await self._db.write(write)
