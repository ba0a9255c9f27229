"""Names of guests in the hypervisor."""

from __future__ import annotations

from pathlib import Path

import pytest
from oslo_config import cfg

from kilonova.model.instance import instance_name
from kilonova.settings import read_options

UUID = "0d7ba1f0-83b4-4b8c-a4c5-8f46f7d1b1a5"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("%(uuid)s", UUID),
        ("instance-%08x", "instance-000000ff"),  # Nova's own
        ("lab-%d", "lab-255"),
        ("%(id)d-%(uuid)s", f"255-{UUID}"),
    ],
)
def test_a_template_names_a_server(template: str, name: str) -> None:
    assert instance_name(template, 255, UUID) == name


@pytest.mark.parametrize("template", ["guest", "%s-%s", "%(name)s", "%", "%z", "", "50%% off"])
def test_a_template_that_makes_no_name_is_refused_at_the_start(template: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"template|same name"):
        instance_name(template, 1, UUID)
    file = tmp_path / "nova.conf"
    file.write_text(f"[DEFAULT]\ninstance_name_template = {template}\n")
    with pytest.raises((cfg.Error, ValueError)):
        read_options(file)
