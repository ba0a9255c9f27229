"""Where a server may be because of where others are: server groups, and hints that name servers."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable

import numpy as np

from kilonova.scheduler.columns import Mask
from kilonova.scheduler.question import Filter, Question

AFFINITY, ANTI_AFFINITY = "affinity", "anti-affinity"
SOFT_AFFINITY, SOFT_ANTI_AFFINITY = "soft-affinity", "soft-anti-affinity"


def _in_group(question: Question, policy: str) -> Hashable | None:
    group = question.request.group
    return True if group is not None and group.policy == policy and group.hosts else None


def _rows(question: Question, compute_ids: Iterable[str]) -> list[int]:
    known = question.columns.row_of_provider
    return [known[each] for each in compute_ids if each in known]


def _apart(question: Question, among: Mask) -> Mask:
    group = question.request.group
    assert group is not None
    mask = np.ones(question.columns.room, np.bool_)
    mask[_rows(question, [each for each, count in group.hosts.items() if count >= group.most])] = False
    return mask


def _why_apart(question: Question, row: int) -> str:
    group = question.request.group
    assert group is not None
    count = group.hosts.get(question.columns.record(row).compute_id, 0)
    return f"it has {count} of the servers of the group {group.uuid}, {group.most} may be on one host"


APART = Filter(
    "ServerGroupAntiAffinityFilter",
    lambda question: _in_group(question, ANTI_AFFINITY),
    _apart,
    _why_apart,
)


def _together(question: Question, among: Mask) -> Mask:
    group = question.request.group
    assert group is not None
    mask = np.zeros(question.columns.room, np.bool_)
    mask[_rows(question, group.hosts)] = True
    return mask


TOGETHER = Filter(
    "ServerGroupAffinityFilter",
    lambda question: _in_group(question, AFFINITY),
    _together,
    lambda question, row: "the other servers of its group are not there",
)


def named_servers(hint: object) -> list[str]:
    """The servers that a hint names: one, or a list."""
    if isinstance(hint, str):
        return [hint]
    return [each for each in hint if isinstance(each, str)] if isinstance(hint, list) else []


def _named(question: Question, hint: str) -> Hashable | None:
    return tuple(named_servers(question.request.hints.get(hint))) or None


def _hosts_of(question: Question, hint: str) -> Mask:
    mask = np.zeros(question.columns.room, np.bool_)
    for server in named_servers(question.request.hints.get(hint)):
        row = question.columns.row_of.get(question.request.hosts_of.get(server, ""))
        if row is not None:
            mask[row] = True
    return mask


def _there(question: Question, hint: str, row: int) -> str:
    name = question.columns.record(row).host
    named = named_servers(question.request.hints.get(hint))
    return ", ".join(each for each in named if question.request.hosts_of.get(each) == name)


DIFFERENT_HOST = Filter(
    "DifferentHostFilter",
    lambda question: _named(question, "different_host"),
    lambda question, among: ~_hosts_of(question, "different_host"),
    lambda question, row: (
        f"the hint 'different_host' keeps it apart from {_there(question, 'different_host', row)}"
    ),
)

SAME_HOST = Filter(
    "SameHostFilter",
    lambda question: _named(question, "same_host"),
    lambda question, among: _hosts_of(question, "same_host"),
    lambda question, row: "none of the servers of the hint 'same_host' is there",
)


def _network(question: Question) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Around the address of the hint; None when the hints make none."""
    hints = question.request.hints
    cidr = hints.get("cidr") or "/24"
    try:
        return ipaddress.ip_network(f"{hints.get('build_near_host_ip')}{cidr}", strict=False)
    except ValueError:
        return None


def _near(question: Question, among: Mask) -> Mask:
    network, columns = _network(question), question.columns
    mask = np.zeros(columns.room, np.bool_)
    for row in columns.row_of.values():
        try:
            mask[row] = network is not None and ipaddress.ip_address(columns.record(row).host_ip) in network
        except ValueError:  # a host that tells no address is near none
            mask[row] = False
    return mask


def _near_what(question: Question) -> Hashable | None:
    hints = question.request.hints
    if not hints.get("build_near_host_ip"):
        return None
    return str(hints["build_near_host_ip"]), str(hints.get("cidr"))


NEAR = Filter(
    "SimpleCIDRAffinityFilter",
    _near_what,
    _near,
    lambda question, row: (
        f"its address {question.columns.record(row).host_ip} is not near "
        f"{question.request.hints['build_near_host_ip']}"
    ),
    fixed=True,
)
