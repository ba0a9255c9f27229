"""Options of live migration."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilonova.errors import Failed
from kilonova.settings import Settings, read_options
from kilonova.virt.libvirt.live_options import LiveOptions, for_others, live_options_from


def read(tmp_path: Path, text: str) -> LiveOptions:
    file = tmp_path / "nova.conf"
    file.write_text(text)
    return live_options_from(Settings(state_dir=tmp_path, options=read_options(file)))


@pytest.mark.capability("MG-LM-19", "MG-LM-20", "MG-LM-21")
def test_they_are_novas(tmp_path: Path) -> None:
    assert read(tmp_path, "") == LiveOptions()
    found = read(
        tmp_path,
        "[DEFAULT]\nmy_ip = 10.0.0.1\n[compute]\nlive_migration_wait_for_vif_plug = false\n[libvirt]\n"
        "live_migration_uri = qemu+ssh://nova@%s/system\nlive_migration_scheme = tls\n"
        "live_migration_inbound_addr = 10.1.0.1\nlive_migration_with_native_tls = true\n"
        "live_migration_bandwidth = 7\nlive_migration_downtime = 700\nlive_migration_downtime_steps = 7\n"
        "live_migration_downtime_delay = 70\nlive_migration_completion_timeout = 77\n"
        "live_migration_timeout_action = force_complete\nlive_migration_permit_post_copy = true\n"
        "live_migration_permit_auto_converge = true\nlive_migration_unsafe = true\n",
    )
    assert found == LiveOptions(
        uri="qemu+ssh://nova@%s/system",
        scheme="tls",
        address="10.1.0.1",
        native_tls=True,
        bandwidth=7,
        downtime=700,
        downtime_steps=7,
        downtime_delay=70,
        completion_timeout=77,
        timeout_action="force_complete",
        permit_post_copy=True,
        permit_auto_converge=True,
        unsafe=True,
        wait_for_plug=False,
    )
    assert read(tmp_path, "[libvirt]\nlive_migration_tunnelled = true\n").tunnelled


def test_those_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="has to have a %s"):
        read(tmp_path, "[libvirt]\nlive_migration_uri = qemu+tcp://there/system\n")
    with pytest.raises(Failed, match="exclude each other"):
        read(
            tmp_path,
            "[libvirt]\nlive_migration_tunnelled = true\nlive_migration_with_native_tls = true\n",
        )


def test_where_others_reach_a_host(tmp_path: Path) -> None:
    assert read(tmp_path, "[DEFAULT]\nmy_ip = 10.0.0.1\n").address == "10.0.0.1"
    assert for_others("127.0.0.1") == for_others("::1") == ""
    assert for_others("fd00::1") == "fd00::1" and for_others("host.example.org") == "host.example.org"
