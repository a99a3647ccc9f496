"""Our order of versions is dpkg's: compared with the real dpkg on versions as they occur and as they might."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.host.debian_version import compare

VERSIONS = st.from_regex(r"([0-9]{1,2}:)?[0-9][0-9A-Za-z.+~]{0,8}(-[0-9A-Za-z.+~]{1,6}){0,2}", fullmatch=True)
KERNELS = st.builds(
    "{}.{}.0-{}-{}".format, st.integers(4, 7), st.integers(0, 20), st.integers(1, 999),
    st.sampled_from(["generic", "amd64", "lowlatency", "cloud-amd64", "rt-amd64", "nvidia-64k"]),
)  # fmt: skip


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="there is no dpkg to compare with")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.tuples(VERSIONS, VERSIONS), st.tuples(KERNELS, KERNELS)))
def test_versions_are_ordered_as_dpkg_orders_them(pair: tuple[str, str]) -> None:
    left, right = pair
    for operator, holds in (("lt", compare(left, right) < 0), ("eq", compare(left, right) == 0)):
        done = subprocess.run(["dpkg", "--compare-versions", left, operator, right], check=False, capture_output=True)
        assert (done.returncode == 0) == holds, (left, operator, right, done.stderr)
