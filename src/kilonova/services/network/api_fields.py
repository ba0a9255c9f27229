"""Attributes of requests: their forms, and who may give which."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

import msgspec

from kilonova.model.context import RequestContext
from kilonova.services.network.faults import HTTPBadRequest, PolicyNotAuthorized
from kilonova.services.network.work import privileged

Check = Callable[[Any], Any]
"""Gives the value in its inner form.  Raises ValueError with what is wrong."""

REQUIRED = object()

_UUID = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")


class Field(msgspec.Struct, frozen=True):
    """One attribute: ``name`` is that of the domain's value; ``default`` REQUIRED or what POST fills in."""

    name: str
    check: Check
    default: Any = None
    post: bool = True
    put: bool = True
    admin: bool = False


Fields = dict[str, Field]


def read_values(
    fields: Fields, body: dict[str, Any], context: RequestContext, resource: str, creating: bool
) -> dict[str, Any]:
    """The values that a request gives, checked, with defaults if something is created.

    Raises HTTPBadRequest, PolicyNotAuthorized.
    """
    values: dict[str, Any] = {}
    for attribute, given in body.items():
        field = fields.get(attribute)
        if field is None:
            raise HTTPBadRequest(f"Unrecognized attribute(s) '{attribute}'")
        if not (field.post if creating else field.put):
            raise HTTPBadRequest(
                f"Attribute '{attribute}' not allowed in POST"
                if creating
                else f"Cannot update read-only attribute {attribute}"
            )
        value = _checked(field, attribute, given)
        if field.admin and not (privileged(context) or (creating and value == field.default)):
            action = "create" if creating else "update"
            raise PolicyNotAuthorized(f"(rule:{action}_{resource}:{attribute}) is disallowed by policy")
        if field.name in values and values[field.name] != value:
            raise HTTPBadRequest(f"'{attribute}' and another attribute of the same meaning differ.")
        values[field.name] = value
    if creating:
        _complete(fields, values)
    _check_owner(values, context)
    return values


def _checked(field: Field, attribute: str, given: Any) -> Any:
    try:
        return field.check(given)
    except (ValueError, TypeError, OverflowError) as error:
        raise HTTPBadRequest(f"Invalid input for {attribute}. Reason: {error}.") from error


def _complete(fields: Fields, values: dict[str, Any]) -> None:
    for attribute, field in fields.items():
        if field.post and field.name not in values:
            if field.default is REQUIRED:
                raise HTTPBadRequest(
                    f"Failed to parse request. Required attribute '{attribute}' not specified"
                )
            values[field.name] = field.default


def _check_owner(values: dict[str, Any], context: RequestContext) -> None:
    owner = values.get("project_id")
    if owner and owner != context.project_id and not privileged(context):
        raise HTTPBadRequest(
            "Specifying a 'project_id' or 'tenant_id' other than the authenticated project in request "
            "requires admin privileges"
        )


# -- forms of values --------------------------------------------------------------------------------


def string(limit: int = 255) -> Check:
    def check(value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ValueError(f"'{value}' is not a valid string")
        if len(value) > limit:
            raise ValueError(f"'{value[:32]}...' exceeds maximum length of {limit}")
        if "\x00" in value:
            raise ValueError("a null character is not allowed")
        return value

    return check


def boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("true", "1"):
        return True
    if text in ("false", "0"):
        return False
    raise ValueError(f"'{value}' cannot be converted to boolean")


def whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError(f"'{value}' is not an integer")
        text = str(value).strip()
        if not re.fullmatch(r"-?[0-9]{1,10}", text, re.ASCII):
            raise ValueError(f"'{value}' is not an integer")
        number = int(text)
        if not low <= number <= high:
            raise ValueError(f"'{number}' is not in the range from {low} to {high}")
        return number

    return check


def optional(check: Check) -> Check:
    """The form, or null."""
    return lambda value: None if value is None else check(value)


def one_of(*choices: str) -> Check:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"'{value}' is not in {list(choices)}")
        return str(value)

    return check


def identifier(value: Any) -> str:
    if not isinstance(value, str) or not _UUID.match(value):
        raise ValueError(f"'{value}' is not a valid UUID")
    return value


def identifiers(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"'{value}' is not a list")
    if len(set(map(str, value))) != len(value):
        raise ValueError(f"Duplicate items in the list: '{', '.join(map(str, value))}'")
    return tuple(identifier(each) for each in value)


def mac(value: Any) -> str:
    text = str(value).lower().replace("-", ":")
    if not isinstance(value, str) or not _MAC.match(text):
        raise ValueError(f"'{value}' is not a valid MAC address")
    if int(text[:2], 16) & 1:
        raise ValueError(f"'{value}' is a multicast MAC address")
    if text == "00:00:00:00:00:00":
        raise ValueError(f"'{value}' is not a valid MAC address")
    return text


def ip(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{value}' is not a valid IP address")
    try:
        found = ipaddress.ip_address(value)
    except ValueError as error:
        raise ValueError(f"'{value}' is not a valid IP address") from error
    if isinstance(found, ipaddress.IPv6Address) and found.scope_id:
        raise ValueError(f"'{value}' is not a valid IP address")
    return str(found)


def cidr(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{value}' is not a valid IP subnet")
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError as error:
        raise ValueError(f"'{value}' is not a valid IP subnet") from error


def text_list(check: Check, limit: int) -> Check:
    def read(value: Any) -> tuple[Any, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            raise ValueError(f"'{value}' is not a list")
        if len(value) > limit:
            raise ValueError(f"the list has {len(value)} items, at most {limit} are allowed")
        found = tuple(check(each) for each in value)
        if len(set(found)) != len(found):
            raise ValueError(f"Duplicate items in the list: '{value}'")
        return found

    return read


def mapping(value: Any, allowed: tuple[str, ...]) -> dict[str, Any]:
    """An object with no other keys than these."""
    if not isinstance(value, dict):
        raise ValueError(f"'{value}' is not a dictionary")
    for key in value:
        if key not in allowed:
            raise ValueError(f"the key '{key}' is not known, only {list(allowed)} are")
    return value


def profile(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"'{value}' is not a dictionary")
    if len(msgspec.json.encode(value)) > 4095:
        raise ValueError("the binding profile is longer than 4095 bytes")
    return value


PROJECT = Field("project_id", string(255), None, put=False)
OWNER: Fields = {"project_id": PROJECT, "tenant_id": PROJECT}
