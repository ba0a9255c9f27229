"""What an operator has set, as the scheduler uses it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from kilonova.errors import Failed
from kilonova.scheduler.nova_conf import ALL_FILTERS, ALL_WEIGHERS, FILTER_SCHEDULER, METRICS, SCHEDULER
from kilonova.settings import Settings


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """[scheduler], [filter_scheduler] and [metrics], those of the last with ``metrics_`` before their names,
    and ``multipliers``, by their names, of what each weigher counts."""

    default_zone: str = "nova"
    service_down_time: int = 60
    limit_tenants_to_placement_aggregate: bool = False
    placement_aggregate_required_for_tenants: bool = False
    enable_isolated_aggregate_filtering: bool = False
    max_placement_results: int = 1000
    host_subset_size: int = 1
    max_io_ops_per_host: int = 8
    max_instances_per_host: int = 50
    track_instance_changes: bool = True
    available_filters: tuple[str, ...] = (ALL_FILTERS,)
    enabled_filters: tuple[str, ...] = ()
    weight_classes: tuple[str, ...] = (ALL_WEIGHERS,)
    multipliers: dict[str, float] = {}
    image_props_weights: dict[str, float] = {}
    shuffle_best_same_weighed_hosts: bool = False
    image_properties_default_architecture: str | None = None
    isolated_images: frozenset[str] = frozenset()
    isolated_hosts: frozenset[str] = frozenset()
    restrict_isolated_hosts_to_isolated_images: bool = True
    aggregate_image_properties_isolation_namespace: str | None = None
    aggregate_image_properties_isolation_separator: str = "."
    metrics_weights: dict[str, float] = {}
    metrics_required: bool = True
    metrics_weight_of_unavailable: float = -10000.0


def default_options(**changes: Any) -> Options:
    """What holds when nothing is set but ``changes``."""
    groups = {"scheduler": SCHEDULER, "filter_scheduler": FILTER_SCHEDULER, "metrics": METRICS}
    values: dict[str, dict[str, Any]] = {
        name: {option.dest: option.default for option in options} for name, options in groups.items()
    }
    return msgspec.structs.replace(_options(values), **changes)


def options_of(settings: Settings) -> Options:
    """Raises Failed for weights that are none."""
    return msgspec.structs.replace(
        _options(settings.options),
        default_zone=settings.text("default_availability_zone"),
        service_down_time=settings.number("service_down_time"),
    )


def _options(groups: dict[str, Any]) -> Options:
    found: dict[str, Any] = {**groups["scheduler"], **groups["filter_scheduler"]}
    metrics: dict[str, Any] = groups["metrics"]
    multipliers = {name: float(value) for name, value in found.items() if name.endswith("_multiplier")}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if name in Options.__struct_fields__
    }
    given["isolated_images"] = frozenset(found["isolated_images"])
    given["isolated_hosts"] = frozenset(found["isolated_hosts"])
    return Options(
        **given,
        multipliers={**multipliers, "metrics_weight_multiplier": float(metrics["weight_multiplier"])},
        image_props_weights=_weights(
            found["image_props_weight_setting"], "[filter_scheduler]image_props_weight_setting"
        ),
        metrics_weights=_weights(metrics["weight_setting"], "[metrics]weight_setting"),
        metrics_required=metrics["required"],
        metrics_weight_of_unavailable=float(metrics["weight_of_unavailable"]),
    )


def _weights(settings: Iterable[str], option: str) -> dict[str, float]:
    """Of ``name=1.5`` each."""
    result = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            result[name.strip()] = float(value)
        except ValueError:
            raise Failed(f"{option}: '{setting}' is not of the form name=number.") from None
    return result
