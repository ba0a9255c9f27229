"""Serving metadata to the guests of this host: one small server on a socket inside each network."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from kilonova.model.instance import Instance
from kilonova.rpc.desk import Desk
from kilonova.services.metadata import api
from kilonova.settings import Settings
from kilonova.web.server import HttpServer


class GuestMetadata:
    """``serve`` is what a layer-2 agent calls for each network that it makes."""

    def __init__(self, desk: Desk, settings: Settings) -> None:
        self._desk = desk
        self._settings = api.MetadataSettings(
            dhcp_domain=settings.text("dhcp_domain"),
            availability_zone=settings.text("default_availability_zone"),
        )

    async def serve(self, network_id: str, listening: socket.socket) -> Callable[[], Awaitable[None]]:
        """Answer on ``listening``; what is returned ends that."""
        app = api.app(self._desk.guest_at, network_id, settings=self._settings, store_password=self._store)
        server = HttpServer(app, [listening])
        await server.start()
        return server.stop

    async def _store(self, instance: Instance, password: str) -> None:
        await self._desk.keep_password(instance.uuid, password)
