"""The arithmetic of quotas."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Invalid, OverQuota
from kilonova.resources import quota
from kilonova.settings import Settings, read_options

ONE = {"instances": 1, "cores": 2, "ram": 512}


@pytest.mark.capability("UT-10")
def test_as_many_as_fit() -> None:
    limits = {"instances": 10, "cores": 20, "ram": 51200}
    used = {"instances": 3, "cores": 15, "ram": 0}
    assert quota.fitting(limits, used, ONE, 1, 10) == 2  # cores
    assert quota.fitting(limits, used, ONE, 1, 1) == 1
    assert quota.fitting({**limits, "cores": -1}, used, ONE, 1, 10) == 7  # instances
    assert quota.fitting({"instances": -1}, used, ONE, 1, 999) == 999
    assert quota.fitting(limits, used, {**ONE, "cores": 0}, 1, 10) == 7  # what is not used is no matter
    with pytest.raises(OverQuota, match="cores: Requested 6, but already used 15 of 20 cores"):
        quota.fitting(limits, used, ONE, 3, 3)
    with pytest.raises(OverQuota, match="cores, instances: Requested 20, 3-10, but already used 15, 3 of"):
        quota.fitting(limits, used, ONE, 3, 10)


small = st.integers(0, 50)


@given(
    limits=st.fixed_dictionaries({name: st.integers(-1, 50) for name in ONE}),
    used=st.fixed_dictionaries({name: small for name in ONE}),
    one=st.fixed_dictionaries({name: st.integers(0, 5) for name in ONE}),
    least=st.integers(1, 20),
    more=st.integers(0, 20),
)
def test_never_more_than_there_is(
    limits: dict[str, int], used: dict[str, int], one: dict[str, int], least: int, more: int
) -> None:
    def fits(count: int) -> bool:
        return all(
            limits[name] < 0 or not one[name] or used[name] + count * one[name] <= limits[name]
            for name in one
        )

    try:
        count = quota.fitting(limits, used, one, least, least + more)
    except OverQuota:
        assert not fits(least)
        return
    assert least <= count <= least + more and fits(count)
    assert count == least + more or not fits(count + 1)


def test_limits_that_may_be_set() -> None:
    for limit, minimum, maximum, good in (
        (5, 5, -1, True),
        (4, 5, -1, False),
        (-1, 5, -1, True),
        (-2, 0, -1, False),
        (0, 0, -1, True),
        (7, 0, 7, True),
        (8, 0, 7, False),
        (-1, 0, 7, False),
    ):
        if good:
            quota.check_limit("cores", limit, minimum=minimum, maximum=maximum)
        else:
            with pytest.raises(Invalid, match="cores"):
                quota.check_limit("cores", limit, minimum=minimum, maximum=maximum)


def test_defaults_are_the_options() -> None:
    options = read_options(None)
    options["quota"].update(instances=3, injected_file_path_length=7)
    found = quota.defaults(Settings(state_dir=Path("/nowhere"), options=options))
    assert (found["instances"], found["injected_file_path_bytes"], found["cores"]) == (3, 7, 20)
    assert found["fixed_ips"] == -1
