"""Regions, services and endpoints: those of the configuration, which stay, and those that are added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from kilonova.db import identity_catalog as entries
from kilonova.db.engine import Tx
from kilonova.db.identity_catalog import E, Endpoint, Region, Service
from kilonova.errors import Conflict, Forbidden, Invalid, NotFound
from kilonova.services.identity import bodies
from kilonova.services.identity.builtin import new_id
from kilonova.services.identity.call import Call, Handler, Routes, no_content
from kilonova.services.identity.catalog import PLACES, Entries, places
from kilonova.web.json import JsonResponse

RegionId = Annotated[str, Meta(max_length=255, pattern=r"\A[^/?#\s]*\Z")]
Url = Annotated[str, Meta(max_length=4096, pattern=r"\A[a-z][a-z+.-]*://\S+\Z")]
Text = Annotated[str, Meta(max_length=65535)]


class RegionBody(msgspec.Struct, kw_only=True):
    id: RegionId | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET
    parent_region_id: RegionId | UnsetType | None = UNSET


class ServiceBody(msgspec.Struct, kw_only=True):
    id: str | UnsetType = UNSET
    type: Annotated[str, Meta(min_length=1, max_length=255)] | UnsetType = UNSET
    name: Annotated[str, Meta(max_length=255)] | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET


class EndpointBody(msgspec.Struct, kw_only=True):
    id: str | UnsetType = UNSET
    service_id: str | UnsetType = UNSET
    interface: Literal["public", "internal", "admin"] | UnsetType = UNSET
    region_id: RegionId | UnsetType | None = UNSET
    region: RegionId | UnsetType | None = UNSET  # the old name; a region of it is made if there is none
    url: Url | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


def _view(call: Call, plural: str, entry: Region | Service | Endpoint) -> dict[str, Any]:
    found = msgspec.structs.asdict(entry)
    if isinstance(entry, Endpoint):
        found["region"] = entry.region_id
    return {**found, "links": call.link(plural, entry.id)}


def _region(tx: Tx, found: Entries, data: dict[str, Any], old: Region | None) -> Region:
    body = bodies.read(RegionBody, data)
    id = old.id if old else body.id or new_id()
    if old is None and id in found.regions:
        raise Conflict(f"Conflict occurred attempting to store region - Duplicate ID, {id}.")
    parent = _value(body.parent_region_id, old.parent_region_id if old else None)
    above, seen = parent, {id}
    while above is not None:
        if above not in found.regions:
            raise NotFound(f"Could not find region: {above}.")
        if above in seen:
            raise Invalid(f"The region {id} cannot be below itself.")
        seen.add(above)
        above = found.regions[above].parent_region_id
    description = _value(body.description, old.description if old else "") or ""
    return Region(id=id, description=description, parent_region_id=parent)


def _service(tx: Tx, found: Entries, data: dict[str, Any], old: Service | None) -> Service:
    body = bodies.read(ServiceBody, data)
    if old is None and body.type is UNSET:
        raise Invalid("A service must have a type.")
    return Service(
        id=old.id if old else new_id(),
        type=_value(body.type, old.type if old else ""),
        name=_value(body.name, old.name if old else "") or "",
        description=_value(body.description, old.description if old else "") or "",
        enabled=_value(body.enabled, old.enabled if old else True),
    )


def _endpoint(tx: Tx, found: Entries, data: dict[str, Any], old: Endpoint | None) -> Endpoint:
    body = bodies.read(EndpointBody, data)
    if old is None and UNSET in (body.service_id, body.interface, body.url):
        raise Invalid("An endpoint must have a service_id, an interface and a url.")
    made = Endpoint(
        id=old.id if old else new_id(),
        service_id=_value(body.service_id, old.service_id if old else ""),
        interface=_value(body.interface, old.interface if old else ""),
        region_id=_value(body.region_id, _value(body.region, old.region_id if old else None)),
        url=_value(body.url, old.url if old else ""),
        enabled=_value(body.enabled, old.enabled if old else True),
    )
    wrong = [name for name in places(made.url) if name not in PLACES]
    if wrong:
        raise Invalid(f"The URL of an endpoint cannot have {', '.join(wrong)} filled in.")
    if made.service_id not in found.services:
        raise Invalid(f"Could not find service: {made.service_id}.")
    if made.region_id is not None and made.region_id not in found.regions:
        if body.region_id is not UNSET or not made.region_id:
            raise Invalid(f"Could not find region: {made.region_id}.")
        entries.add(tx, Region(id=made.region_id))
    return made


def _value(given: Any, otherwise: Any) -> Any:
    return otherwise if given is UNSET else given


def _check_unused(found: Entries, entry: Region | Service | Endpoint) -> None:
    """Raises Forbidden for a region that something is in."""
    if isinstance(entry, Region):
        below = [each.id for each in found.regions.values() if each.parent_region_id == entry.id]
        inside = [each.id for each in found.endpoints.values() if each.region_id == entry.id]
        if below or inside:
            raise Forbidden(f"Cannot delete region {entry.id}: regions or endpoints are in it.")


class _Kind:
    """The calls on one kind of entry.  ``make`` is what a body makes of nothing, or of an old entry."""

    def __init__(
        self, kind: type[E], filters: tuple[str, ...], make: Callable[..., E], *, everybody: bool = False
    ) -> None:
        self.kind: type[Any] = kind
        self.name = kind.__name__.lower()
        self.plural = self.name + "s"
        self.filters = filters
        self.make: Callable[..., Any] = make
        self.everybody = everybody

    def routes(self) -> Routes:
        one: dict[str, Handler] = {"GET": self.show, "PATCH": self.update, "DELETE": self.delete}
        if self.kind is Region:
            one["PUT"] = self.create
        return {
            f"/v3/{self.plural}": {"GET": self.index, "POST": self.create},
            f"/v3/{self.plural}/{{id}}": one,
        }

    async def index(self, call: Call) -> Response:
        call.need_reader(f"identity:list_{self.plural}", own=self.everybody)
        found = (await call.entries()).of(self.kind).values()
        wanted = {name: call.query(name) for name in self.filters if call.query(name) is not None}
        views = (_view(call, self.plural, each) for each in found)
        return call.listing(
            self.plural,
            [view for view in views if all(view[name] == value for name, value in wanted.items())],
        )

    async def show(self, call: Call) -> Response:
        call.need_reader(f"identity:get_{self.name}", own=self.everybody)
        found = self._find(await call.entries(), call.part("id"))
        return JsonResponse({self.name: _view(call, self.plural, found)})

    def _find(self, found: Entries, id: str) -> Any:
        """Raises NotFound."""
        entry = found.of(self.kind).get(id)
        if entry is None:
            raise NotFound(f"Could not find {self.name}: {id}.")
        return entry

    def _find_own(self, call: Call, found: Entries) -> Any:
        """Raises NotFound, and Forbidden for an entry of the configuration."""
        id = call.part("id")
        if id in call.configured.of(self.kind):
            raise Forbidden(f"The {self.name} {id} is in the configuration of this cloud and stays as it is.")
        return self._find(found, id)

    async def create(self, call: Call) -> Response:
        call.need_admin(f"identity:create_{self.name}")
        data = await call.body(self.name)
        if "id" in call.request.path_params:
            if data.get("id", call.part("id")) != call.part("id"):
                raise Invalid("The id in the body is not that of the path.")
            data["id"] = call.part("id")

        def change(tx: Tx) -> Any:
            return entries.add(tx, self.make(tx, call.all_entries(tx), data, None))

        made = await call.identity.change(change)
        return JsonResponse({self.name: _view(call, self.plural, made)}, 201)

    async def update(self, call: Call) -> Response:
        call.need_admin(f"identity:update_{self.name}")
        data = await call.body(self.name)
        if data.get("id", call.part("id")) != call.part("id"):
            raise Invalid("Cannot change the ID.")

        def change(tx: Tx) -> Any:
            found = call.all_entries(tx)
            return entries.change(tx, self.make(tx, found, data, self._find_own(call, found)))

        changed = await call.identity.change(change)
        return JsonResponse({self.name: _view(call, self.plural, changed)})

    async def delete(self, call: Call) -> Response:
        call.need_admin(f"identity:delete_{self.name}")

        def change(tx: Tx) -> None:
            found = call.all_entries(tx)
            entry = self._find_own(call, found)
            _check_unused(found, entry)
            entries.drop(tx, entry)

        await call.identity.change(change)
        return no_content()


ROUTES: Routes = {
    **_Kind(Region, ("parent_region_id",), _region, everybody=True).routes(),
    **_Kind(Service, ("type", "name"), _service).routes(),
    **_Kind(Endpoint, ("interface", "service_id", "region_id"), _endpoint).routes(),
}
