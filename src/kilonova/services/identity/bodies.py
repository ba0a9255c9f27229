"""The bodies of requests: what may be set, of which type, and the attributes that users invent."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from kilonova.errors import Invalid
from kilonova.services.identity import passwords

Name = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\S")]
RoleName = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\S")]
Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[A-Za-z0-9-]+\Z")]
Description = Annotated[str, Meta(max_length=65535)]
Password = Annotated[str, Meta(max_length=passwords.MAX_LENGTH)]
Tag = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\A[^,/]+\Z")]
Tags = Annotated[list[Tag], Meta(max_length=80)]

NEVER_KEPT = {"id", "links", "options", "is_domain", "password_expires_at"}
"""Attributes of ours that clients send back as they got them."""


class Body(msgspec.Struct, kw_only=True):
    """What may be in any of them."""

    id: str | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    options: dict[str, Any] | UnsetType = UNSET


class DomainBody(Body, kw_only=True):
    enabled: bool | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET


class ProjectBody(Body, kw_only=True):
    domain_id: Id | UnsetType | None = UNSET
    parent_id: Id | UnsetType | None = UNSET
    is_domain: bool | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET


class UserBody(Body, kw_only=True):
    domain_id: Id | UnsetType | None = UNSET
    default_project_id: Id | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    password: Password | UnsetType | None = UNSET
    email: Annotated[str, Meta(max_length=255)] | UnsetType | None = UNSET


class GroupBody(Body, kw_only=True):
    domain_id: Id | UnsetType | None = UNSET


class RoleBody(Body, kw_only=True):
    domain_id: Id | UnsetType | None = UNSET


class TagsBody(msgspec.Struct):
    tags: Tags


class PasswordBody(msgspec.Struct):
    password: Password
    original_password: Password


B = TypeVar("B", bound=msgspec.Struct)


def read(kind: type[B], found: dict[str, Any]) -> B:
    """Raises Invalid, which says where and why but never repeats a value."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"Invalid input: {error}.") from error


def given(body: Body) -> dict[str, Any]:
    """The fields that the request has."""
    pairs = ((name, getattr(body, name)) for name in body.__struct_fields__)
    return {name: value for name, value in pairs if value is not UNSET}


def extra(kind: type[Body], found: dict[str, Any], kept: tuple[str, ...] = ()) -> dict[str, Any]:
    """The attributes in a body that are no field of its kind, and those of ``kept``."""
    known = (set(kind.__struct_fields__) | NEVER_KEPT) - set(kept)
    return {name: value for name, value in found.items() if name not in known}


def check_id(body: Body, id: str) -> None:
    """Raises Invalid for a body with another id than the path."""
    if body.id is not UNSET and body.id != id:
        raise Invalid("Cannot change the ID.")


def check_same(name: str, wanted: object, current: object) -> None:
    """Raises Invalid for an attempt to change what stays as it was made."""
    if wanted is not UNSET and wanted != current:
        raise Invalid(f"Cannot change {name}.")
