"""The metadata service of one network: a guest asks 169.254.169.254 and is known by its address."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from kilonova.errors import Conflict, Forbidden, Invalid, NotFound
from kilonova.model.instance import Instance
from kilonova.services.metadata import ec2
from kilonova.services.metadata.documents import Described, ec2_facts, openstack_documents, user_data
from kilonova.services.metadata.versions import EC2, GRIZZLY, LATEST, OPENSTACK, has
from kilonova.web.json import read_body
from kilonova.web.requests import answering_errors

MAX_PASSWORD = 4 * 255  # it is kept in four values of system_metadata

Find = Callable[[str, str], Awaitable[Instance | None]]
"""From a network's id and an address in it to the server that has the address now."""

StorePassword = Callable[[Instance, str], Awaitable[None]]
"""Keeps what a guest says its (encrypted) password is."""

_FORWARDING = ("x-forwarded-for", "forwarded")


class MetadataSettings(msgspec.Struct, frozen=True, kw_only=True):
    dhcp_domain: str = ""
    availability_zone: str = "nova"
    vendor_data: dict[str, object] = {}


class MetadataApi:
    """The handler of every path; nothing is kept between requests, so what is said is always true."""

    def __init__(
        self, find: Find, network_id: str, settings: MetadataSettings, store_password: StorePassword | None
    ) -> None:
        self._find = find
        self._network_id = network_id
        self._settings = settings
        self._store_password = store_password

    async def get(self, request: Request) -> Response:
        described = await self._described(request)
        path = [each for each in request.url.path.split("/") if each]
        if path[:1] == ["openstack"]:
            return self._openstack(described, path[1:])
        return self._ec2(described, path)

    async def post(self, request: Request) -> Response:
        """The guest tells its password, once: ``/openstack/<version>/password``."""
        described = await self._described(request)
        path = [each for each in request.url.path.split("/") if each]
        at_password = len(path) == 3 and (path[0], path[2]) == ("openstack", "password")
        if not at_password or "password" not in self._names(described, path[1]):
            raise NotFound(f"{request.url.path} is not here.")
        if self._store_password is None:
            raise Forbidden("This service keeps no passwords.")
        if password_of(described.instance):
            raise Conflict("The password is already set.")
        body = await read_body(request, MAX_PASSWORD)
        try:
            text = body.decode("ascii")
        except UnicodeDecodeError as error:
            raise Invalid("The password is not encrypted and base64-encoded.") from error
        if "\0" in text:
            raise Invalid("The password is not encrypted and base64-encoded.")
        await self._store_password(described.instance, text)
        return PlainTextResponse("")

    async def _described(self, request: Request) -> Described:
        """The server that asks, by the address that it asks from.

        Raises Forbidden for what came through a proxy, whose sender cannot be known; NotFound.
        """
        if any(name in request.headers for name in _FORWARDING):
            raise Forbidden("Requests that were forwarded are not answered.")
        address = _address(request.client.host if request.client else "")
        instance = await self._find(self._network_id, address)
        if instance is None:
            raise NotFound(f"There is no server with the address {address} in this network.")
        return Described(
            instance=instance,
            vifs=instance.vifs,
            availability_zone=self._settings.availability_zone,
            dhcp_domain=self._settings.dhcp_domain,
            vendor_data=self._settings.vendor_data,
            random_seed=os.urandom(512),  # another one at each request, as in Nova
        )

    def _openstack(self, described: Described, path: list[str]) -> Response:
        if not path:
            return _text("\n".join((*OPENSTACK, LATEST)))
        names = self._names(described, path[0])
        if len(path) == 1 and names:
            return _text("\n".join(names))
        if len(path) != 2 or path[1] not in names:
            raise NotFound(f"/openstack/{'/'.join(path)} is not here.")
        if path[1] == "password":
            return _text(password_of(described.instance))
        content = openstack_documents(described, path[0])[path[1]]()
        if path[1].endswith(".json"):
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream")

    def _names(self, described: Described, version: str) -> list[str]:
        """The documents of a version; none of one that does not exist."""
        if version not in (*OPENSTACK, LATEST):
            return []
        names = list(openstack_documents(described, version))
        return [*names, "password"] if has(version, GRIZZLY) else names

    def _ec2(self, described: Described, path: list[str]) -> Response:
        if not path:
            return _text("\n".join((*EC2, LATEST)))
        if path[0] not in (*EC2, LATEST):
            raise NotFound(f"/{'/'.join(path)} is not here.")
        facts = ec2_facts(described)
        tree: dict[str, object] = {"meta-data": ec2.ec2_meta_data(facts, path[0])}
        data = user_data(described.instance)
        if data is not None:
            tree["user-data"] = data
        found = ec2.find(tree, path[1:])
        if found is None:
            raise NotFound(f"/{'/'.join(path)} is not here.")
        if isinstance(found, bytes):
            return Response(found, media_type="application/octet-stream")
        return _text(ec2.render(found))


def password_of(instance: Instance) -> str:
    """The password that the guest has told, as it told it; empty if it has not."""
    return "".join(instance.system_metadata.get(f"password_{number}", "") for number in range(4))


def app(
    find: Find,
    network_id: str,
    *,
    settings: MetadataSettings | None = None,
    store_password: StorePassword | None = None,
) -> ASGIApp:
    """The service of one network, to be served on an address in it.

    Whoever serves it gives it the true address of the client: no proxy headers.
    """
    api = MetadataApi(find, network_id, settings or MetadataSettings(), store_password)
    return Starlette(
        routes=[
            Route("/{path:path}", answering_errors(api.get, _render), methods=["GET"]),
            Route("/{path:path}", answering_errors(api.post, _render), methods=["POST"]),
        ]
    )


def _render(status: int, text: str) -> Response:
    return PlainTextResponse(text, status)


def _text(content: str | bytes) -> Response:
    return PlainTextResponse(content)


def _address(host: str) -> str:
    """The address in its shortest form; an IPv4 one that came in by an IPv6 socket as IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        raise NotFound("The sender of this request has no address.") from None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
