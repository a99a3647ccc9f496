from __future__ import annotations

from agent.host.clock import BOOT_ID, RealClock
from tests.support.fake_host import FakeHost

KERNELS = "c7b8bd3c-3795-4680-b36b-84f04566129e\n"
SYSTEMDS = "f730653a0a17415f8cf6d089d6be86e2"


def test_the_boot_is_named_as_the_journal_names_it() -> None:
    host = FakeHost.build({BOOT_ID: KERNELS})
    assert RealClock(host.files, {}).now().boot_id == "c7b8bd3c37954680b36b84f04566129e"


def test_the_boot_that_systemd_tells_its_unit_wins_over_a_file_that_the_units_sandbox_replaced() -> None:
    host = FakeHost.build({BOOT_ID: KERNELS})
    assert RealClock(host.files, {"HOLDFAST_BOOT_ID": SYSTEMDS}).now().boot_id == SYSTEMDS
