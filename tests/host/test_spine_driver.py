"""The driver that is faked, and nothing else: drift, locks, libraries that disagree, and an NVML that hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
from bed import BootedHost, fake_devices, fake_driver, fake_nvml, freeze_thread, kill, set_nvml
from spine import Watched, watched

Boot = Callable[..., BootedHost]
LOCK = "/etc/holdfast/driver.lock"
OLD, NEW = "550.54.15", "580.178.04"
NOTHING_MORE_S = 20.0


def show_driver(scene: Watched, *, loaded: str = OLD, library: str = OLD, behaviour: str = "auto") -> None:
    """A card with a loaded driver, and a library on disk; the daemon looks at once."""
    fake_driver(scene.host, loaded)
    fake_devices(scene.host)
    fake_nvml(scene.host, library=library, behaviour=behaviour, hang_s=600)
    scene.configure()


def outcomes(scene: Watched) -> list[str]:
    return [record["data"]["outcome"] for record in scene.ledger("outcome")]


def test_a_driver_that_is_not_the_locked_one_is_paged_and_blocks_no_repair(host: Boot) -> None:
    scene = watched(host)
    before = scene.engine.pid
    scene.host.write(LOCK, f"{NEW}\n")
    show_driver(scene)
    page = scene.triggered("driver-drift", 30)
    assert page.severity == "critical"
    assert OLD in page.message
    assert NEW in page.message
    time.sleep(NOTHING_MORE_S)
    assert scene.engine.pid == before
    assert scene.starts() == 0

    kill(scene.host, before)
    scene.triggered("engine-dead", 30)
    scene.resolved("engine-dead", 120)
    assert scene.engine.generates()
    assert outcomes(scene) == ["succeeded"]

    scene.host.write(LOCK, f"# as nvidia-smi prints it\n{OLD}\n{OLD}\n")
    scene.configure()
    scene.resolved("driver-drift", 60)


def test_every_way_of_having_no_lock_has_its_own_result_and_only_one_that_cannot_be_used_pages(host: Boot) -> None:
    scene = watched(host)

    def looked(lock: str | None, exit_code: int, *words: str) -> None:
        scene.host.sh(f"rm -f {LOCK}")
        if lock is not None:
            scene.host.write(LOCK, lock)
        scene.configure()
        said = scene.host.run("holdfast", "check", "driver.lock", check=False)
        assert said.returncode == exit_code, said.stdout
        for word in words:
            assert word in said.stdout, said.stdout

    looked(None, 0, "no NVIDIA driver, nothing locked")
    show_driver(scene)
    looked(f"{OLD}\n", 0, f"driver {OLD} runs, as locked")
    looked(None, 1, f"driver {OLD} runs, but no version is locked")
    time.sleep(NOTHING_MORE_S)
    assert scene.pages() == [], "who has no lock has asked for nothing"
    looked("latest\n", 1, "nothing is locked", "'latest' is not a driver version")
    looked("# to be done\n", 1, "nothing is locked", "names no version")
    looked(f"{OLD}\n{NEW}\n", 1, "nothing is locked", OLD, NEW)
    page = scene.triggered("lock-unusable", 90)
    assert page.severity == "warning"
    assert NEW in page.message
    looked(f"{OLD}\n", 0, f"driver {OLD} runs, as locked")
    scene.resolved("lock-unusable", 90)


def refused(scene: Watched, words: Sequence[str]) -> None:
    """The wedged engine is told, is not restarted, and a page says why."""
    before = scene.engine.pid
    scene.triggered("engine-wedged", 180)
    page = scene.page(
        lambda page: page.finding == "engine-wedged" and all(word in page.message for word in words),
        120,
        "the reason why it is not restarted",
    )
    assert page.severity == "critical"
    time.sleep(NOTHING_MORE_S)
    assert scene.engine.pid == before
    assert set(outcomes(scene)) == {"refused"}


def test_a_wedged_engine_is_not_restarted_while_module_and_libraries_disagree(host: Boot) -> None:
    scene = watched(host)
    show_driver(scene, library=NEW)
    page = scene.triggered("driver-mismatch", 30)
    assert OLD in page.message
    assert NEW in page.message
    with freeze_thread(scene.host, scene.engine.pid):
        refused(scene, (f"module is {OLD}", f"libraries on disk are {NEW}"))
    # Released, it serves again by itself, and nobody touched it.
    scene.resolved("engine-wedged", 60)
    assert scene.engine.generates()
    # With the libraries of the loaded version back, a restart can help again.
    show_driver(scene)
    scene.resolved("driver-mismatch", 60)


def test_a_wedged_engine_is_not_restarted_while_nvml_hangs_and_the_daemon_stays_responsive(host: Boot) -> None:
    scene = watched(host)
    show_driver(scene, behaviour="hang")
    daemon = scene.host.main_pid("holdfast.service")
    with freeze_thread(scene.host, scene.engine.pid):
        refused(scene, ("NVML", "did not answer"))
        assert scene.host.main_pid("holdfast.service") == daemon
        assert questions(scene, "holdfast") == 1, "one hangs, and never two at once"
        # The runner's own question waited for its turn, was silent, and left without having touched the driver.
        scene.host.wait_for(lambda: questions(scene, "root") == 0, 60, "the runner's question to leave")
        assert questions(scene, "holdfast") == 1, "the one that hangs in the driver is never killed"
        status = scene.host.run("holdfast", "status", check=False, timeout=20)
        assert "engine-wedged" in status.stdout
        assert 'holdfast_engine_verdict{engine="chat"' in metrics(scene)
        # A question asked anew still gets through while the child hangs.
        scene.host.run("systemctl", "reload", "holdfast", timeout=20)
        assert scene.host.main_pid("holdfast.service") == daemon
    set_nvml(scene.host, behaviour="auto")
    scene.resolved("engine-wedged", 60)
    assert scene.engine.generates()


@pytest.mark.parametrize("library", [NEW])
def test_a_dead_engine_is_not_started_on_a_driver_that_no_new_process_can_use(host: Boot, library: str) -> None:
    scene = watched(host)
    show_driver(scene, library=library)
    scene.triggered("driver-mismatch", 30)
    kill(scene.host, scene.engine.pid)
    page = scene.page(
        lambda page: page.finding == "engine-dead" and "cannot help" in page.message, 60, "why it is not started"
    )
    assert library in page.message
    time.sleep(NOTHING_MORE_S)
    assert scene.engine.pid == 0
    assert set(outcomes(scene)) == {"refused"}


def questions(scene: Watched, user: str) -> int:
    """How many questions to NVML of this user are still unanswered."""
    return int(scene.host.run("pgrep", "-u", user, "-fc", "nvml_child[.]py", check=False).stdout)


def metrics(scene: Watched) -> str:
    """What the daemon says on its metrics port."""
    url = "http://127.0.0.1:9835/metrics"
    script = f"import urllib.request; print(urllib.request.urlopen('{url}', timeout=10).read().decode())"
    return scene.host.run("python3", "-IS", "-c", script).stdout
