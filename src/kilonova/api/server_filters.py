"""Which servers a list is about: from the query string to conditions, by Nova's rules.

What a caller may not filter by is ignored, not refused; so it is in Nova.
"""

from __future__ import annotations

from collections.abc import Callable

from kilonova.api import patterns
from kilonova.api.call import Call
from kilonova.api.paging import page_of
from kilonova.api.query import Keys
from kilonova.api.schema.kinds import is_uuid, read_flag
from kilonova.api.server_sort import sort_of
from kilonova.api.shape import Span, since
from kilonova.clock import SECOND, parse_iso
from kilonova.db.instance_list import ServerList
from kilonova.errors import Forbidden, Invalid
from kilonova.model.states import Vm, states_of

ALL_FILTERS = "os_compute_api:servers:allow_all_filters"

_ALWAYS = (
    "user_id project_id tenant_id launch_index image_ref image kernel_id ramdisk_id hostname key_name "
    "power_state vm_state task_state host node flavor reservation_id launched_at terminated_at "
    "availability_zone name display_name description display_description locked_by uuid root_device_name "
    "config_drive access_ip_v4 access_ip_v6 auto_disk_config progress sort_key sort_dir all_tenants "
    "soft_deleted deleted status changes-since ip ip6 created_at block_device_mapping services metadata "
    "system_metadata info_cache security_groups pci_devices limit marker"
)
TAG_KEYS = ("tags", "tags-any", "not-tags", "not-tags-any")
KEYS = Keys(
    {
        **dict.fromkeys(_ALWAYS.split(), Span()),
        **dict.fromkeys(TAG_KEYS, since(26)),
        "changes-before": since(66),
        "locked": since(73),
    },
    strict_since=75,
)

JOINED = frozenset(
    [
        "block_device_mapping",
        "services",
        "metadata",
        "system_metadata",
        "info_cache",
        "security_groups",
        "pci_devices",
    ]
)

_PUBLIC: tuple[tuple[int, str], ...] = (
    (1, "reservation_id name status image flavor ip changes-since all_tenants"),
    (5, "ip6"),
    (26, "tags tags-any not-tags not-tags-any"),
    (66, "changes-before"),
    (73, "locked"),
    (
        83,
        "availability_zone config_drive key_name created_at launched_at terminated_at power_state task_state "
        "vm_state progress user_id",
    ),
)


def public_filters(version: int) -> frozenset[str]:
    """What everybody may filter by."""
    return frozenset(key for first, keys in _PUBLIC if version >= first for key in keys.split())


_PUBLIC_AT = {version: public_filters(version) for version in range(1, 105)}

Apply = Callable[[ServerList, str], None]


def _pattern(column: str) -> Apply:
    def apply(wanted: ServerList, value: str) -> None:
        patterns.check(value)
        if patterns.is_plain(value):
            wanted.contains(column, value)
        else:
            wanted.matches(column, value)

    return apply


def _exact(column: str) -> Apply:
    return lambda wanted, value: wanted.equals(column, value)


def _number(column: str) -> Apply:
    def apply(wanted: ServerList, value: str) -> None:
        if value.isdecimal() and len(value) < 10:
            wanted.equals(column, int(value))
        else:
            wanted.nothing()

    return apply


def _second(column: str) -> Apply:
    def apply(wanted: ServerList, value: str) -> None:
        second = moment(column, value) // SECOND * SECOND
        wanted.at_least(column, second)
        wanted.at_most(column, second + SECOND - 1)

    return apply


def _never_set(wanted: ServerList, value: str) -> None:
    if value:
        wanted.nothing()


def _flag(key: str, value: str) -> bool:
    try:
        return read_flag(value)
    except ValueError:
        raise Invalid(
            f"Invalid input for query parameters {key}. Value: {value}. It is no boolean."
        ) from None


def moment(key: str, value: str) -> int:
    try:
        return parse_iso(value)
    except (ValueError, OverflowError):
        raise Invalid(
            f"Invalid input for query parameters {key}. Value: {value}. It is no ISO 8601 time."
        ) from None


def _config_drive(wanted: ServerList, value: str) -> None:
    wanted.equals("config_drive", _flag("config_drive", value))


def _disk_config(wanted: ServerList, value: str) -> None:
    wanted.part("system_metadata", "disk_config", "AUTO" if _flag("auto_disk_config", value) else "MANUAL")


def _uuid(wanted: ServerList, value: str) -> None:
    if not is_uuid(value):
        wanted.nothing()
    wanted.equals("uuid", value)


def _address(version: int) -> Apply:
    return lambda wanted, value: wanted.address(version, patterns.check(value))


def _tags(every: bool, positive: bool) -> Apply:
    return lambda wanted, value: wanted.tags(value.split(",")[:50], every=every, wanted=positive)


def _locked(wanted: ServerList, value: str) -> None:
    wanted.is_null("locked", not _flag("locked", value))


_FILTERS: dict[str, Apply] = {
    "name": _pattern("display_name"),
    "display_name": _pattern("display_name"),
    "description": _pattern("display_description"),
    "display_description": _pattern("display_description"),
    "user_id": _exact("user_id"),
    "host": _exact("host"),
    "uuid": _uuid,
    "vm_state": _exact("vm_state"),
    "task_state": _exact("task_state"),
    "image": lambda wanted, value: wanted.part("image", "id", value),
    "image_ref": lambda wanted, value: wanted.part("image", "id", value),
    "flavor": lambda wanted, value: wanted.part("flavor", "flavorid", value),
    "kernel_id": _never_set,
    "ramdisk_id": _never_set,
    **{
        key: _pattern(key)
        for key in [
            "hostname",
            "key_name",
            "node",
            "reservation_id",
            "availability_zone",
            "root_device_name",
            "access_ip_v4",
            "access_ip_v6",
        ]
    },
    "locked_by": _pattern("locked"),
    "locked": _locked,
    **{key: _number(key) for key in ("launch_index", "power_state", "progress")},
    **{key: _second(key) for key in ("created_at", "launched_at", "terminated_at")},
    "config_drive": _config_drive,
    "auto_disk_config": _disk_config,
    "ip": _address(4),
    "ip6": _address(6),
    "tags": _tags(True, True),
    "tags-any": _tags(False, True),
    "not-tags": _tags(True, False),
    "not-tags-any": _tags(False, False),
}


def servers_wanted(call: Call, all_tenants_rule: str) -> ServerList:
    """The list that a request asks for.  Raises Invalid or Forbidden."""
    options = _options(call)
    wanted = ServerList()
    wanted.sort = sort_of(call)
    wanted.limit, wanted.marker = page_of(call.query, call.cloud.settings.number("max_limit", "api"))
    deleted = _by_status(call, wanted, options)
    _by_age(wanted, options)
    if deleted is None:
        deleted = _wants_deleted(options)
    if deleted is not None:
        wanted.is_null("deleted_at", not deleted)
    _by_owner(call, wanted, options, all_tenants_rule)
    for key, value in options.items():
        apply = _FILTERS.get(key)
        if apply is not None:
            apply(wanted, value)
    return wanted


def _options(call: Call) -> dict[str, str]:
    """The filters that this caller may use, each with its last value."""
    known = KEYS.at(call.version)
    given = {key: call.query.last(key) or "" for key in call.query.keys()}  # noqa: SIM118 - no mapping
    given = {key: value for key, value in given.items() if key in known or key.startswith("_")}
    if call.may(ALL_FILTERS):
        for key in given:
            if key in JOINED or key.startswith("_"):
                raise Invalid(f"Invalid filter field: {key}.")
        return given
    allowed = _PUBLIC_AT[call.version]
    return {key: value for key, value in given.items() if key in allowed}


def _by_status(call: Call, wanted: ServerList, options: dict[str, str]) -> bool | None:
    """Adds the states of ``status``; True if that asks for deleted servers."""
    if "status" not in options:
        if options.get("vm_state") != Vm.DELETED:
            return None
        states: list[tuple[str, tuple[str, ...] | None]] = [(Vm.DELETED, None)]
    else:
        states = [pair for word in call.query.every("status") for pair in states_of(word)]
        if not states:
            if call.version >= 38:
                raise Invalid("Invalid status value")
            wanted.nothing()
            return None
        wanted.in_states(states)
    if {vm_state for vm_state, _ in states} == {Vm.DELETED}:
        if not call.context.is_admin:
            raise Forbidden("Only administrators may list deleted instances")
        return True
    return None


def _by_age(wanted: ServerList, options: dict[str, str]) -> None:
    since_text, before_text = options.get("changes-since"), options.get("changes-before")
    first = None if since_text is None else moment("changes-since", since_text)
    last = None if before_text is None else moment("changes-before", before_text)
    if first is not None and last is not None and first > last:
        raise Invalid("The value of changes-since must be less than or equal to changes-before.")
    if first is not None:
        wanted.at_least("updated_at", first)
    if last is not None:
        wanted.at_most("updated_at", last)


def _wants_deleted(options: dict[str, str]) -> bool | None:
    """None: the living and the deleted, which is what one gets who asks for changes."""
    if "deleted" in options:
        return options["deleted"].strip().lower() in ("1", "t", "true", "on", "y", "yes")
    return None if "changes-since" in options or "changes-before" in options else False


def _by_owner(call: Call, wanted: ServerList, options: dict[str, str], all_tenants_rule: str) -> None:
    project = options.get("tenant_id", options.get("project_id"))
    if "tenant_id" in options:
        options.setdefault("all_tenants", "1")
    every = "all_tenants" in options and (
        not options["all_tenants"] or _flag("all_tenants", options["all_tenants"])
    )
    if every:
        call.allow(all_tenants_rule)
        if project is not None:
            wanted.owner = project
            wanted.equals("project_id", project)
    elif call.context.project_id is not None:
        wanted.of_project(call.context.project_id)
    else:
        wanted.equals("user_id", call.context.user_id)
