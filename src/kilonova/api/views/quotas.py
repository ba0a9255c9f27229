"""Quota sets and quota class sets as they are shown.  A record is resource -> value."""

from __future__ import annotations

from operator import itemgetter

from kilonova.api.microversion import MIN
from kilonova.api.schema import quota_classes, quotas
from kilonova.api.view import Item, View
from kilonova.db.quotas import COUNTED
from kilonova.resources.quota import GONE

_ALWAYS = (*COUNTED, "metadata_items", "key_pairs")
_FILES = ("injected_files", "injected_file_content_bytes", "injected_file_path_bytes")
_GROUPS = ("server_groups", "server_group_members")


def _set(network_until: int, groups_since: int) -> View:
    return View(
        *(Item(name, itemgetter(name)) for name in _ALWAYS),
        *(Item(name, itemgetter(name), until=quotas.FILES_UNTIL) for name in _FILES),
        *(Item(name, itemgetter(name), since=groups_since) for name in _GROUPS),
        *(Item(name, itemgetter(name), until=network_until) for name in GONE),
    )


QUOTA_SET = _set(quotas.NETWORK_UNTIL, MIN)
QUOTA_CLASS_SET = _set(quota_classes.NETWORK_UNTIL, 50)
