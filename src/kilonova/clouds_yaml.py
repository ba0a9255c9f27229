"""``clouds.yaml``: how OpenStack's clients find the cloud and log in."""

from __future__ import annotations

import json
from pathlib import Path

from kilonova.state_dir import write_secret


def write(path: Path, identity_url: str, passwords: dict[str, str]) -> None:
    """Two clouds: ``kilonova`` is an ordinary project member, ``kilonova-admin`` the administrator."""

    def cloud(user: str, project: str) -> dict[str, object]:
        return {
            "auth": {
                "auth_url": f"{identity_url}/v3",
                "username": user,
                "password": passwords[user],
                "project_name": project,
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            "region_name": "RegionOne",
            "identity_api_version": "3",
        }

    document = {"clouds": {"kilonova": cloud("demo", "demo"), "kilonova-admin": cloud("admin", "admin")}}
    # JSON is YAML too, and needs no library to be written right.
    write_secret(path, json.dumps(document, indent=2) + "\n")
