"""``[nats]`` of the settings."""

from __future__ import annotations

import re
from pathlib import Path

from kilonova.errors import Failed
from kilonova.rpc.nats_link import BusOptions
from kilonova.settings import Settings


def bus_options(settings: Settings) -> BusOptions:
    """Raises Failed for a prefix that can be none, and for servers that are none."""

    def path(name: str) -> Path | None:
        text = settings.text(name, "nats")
        return Path(text) if text else None

    prefix = settings.text("subject_prefix", "nats")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64})*", prefix):
        raise Failed(f"[nats]subject_prefix is '{prefix}': letters, digits, '-', '_', and '.' between them.")
    servers = tuple(str(each).strip() for each in settings.listed("servers", "nats"))
    for each in servers or ("nothing",):
        if not re.fullmatch(r"(nats|tls)://[^\s/]+", each):
            shown = re.sub(r"//[^/]*@", "//", each)
            raise Failed(
                f"[nats]servers has '{shown}': nats://HOST:PORT or tls://HOST:PORT, and ',' between them."
            )
    return BusOptions(
        servers=servers,
        prefix=prefix,
        seed_file=path("nkey_seed_file"),
        ca_file=path("ca_file"),
        cert_file=path("cert_file"),
        key_file=path("key_file"),
    )
