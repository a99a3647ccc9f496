"""What makes up the driver, what is saved of it, and how it is put back: everything but the commands themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import plugin
from agent.actions.boot_set_default import DROP_IN
from agent.actions.driver_try_saved import RESULT
from agent.cli._ailments import AREAS, Facts
from agent.errors import CommandFailed, FileTrouble, HostError
from agent.host import Completed, Space, boot, driver_set, grub, restoring, saved_driver, saving
from agent.host.saved_driver import FOLDER, Manifest, Missing, Saved, SavedFile, Trial
from agent.plugin import Command, Noop, NoParameters, Plan, Read, Refuse, Target, Wait, WriteFile
from agent.steps import by_hand
from tests.support.fake_host import FakeHost, File

DATA = Path(__file__).resolve().parents[1] / "data"
DPKG = (DATA / "driver-set/noble/dpkg-query.txt").read_text(encoding="utf-8")
KERNEL, DRIVER = "6.8.0-31-generic", "550.54.15"
SET = f"{FOLDER}/{DRIVER}-{KERNEL}"
MODULE = f"/lib/modules/{KERNEL}/kernel/nvidia-550srv/nvidia.ko"
LIB = "/usr/lib/x86_64-linux-gnu"
ROOM = Space(10 << 30, 5 << 30, 1000, 900, False)
LOCKED = {
    "/etc/holdfast/driver.lock": f"{DRIVER}\n",
    "/proc/sys/kernel/osrelease": f"{KERNEL}\n",
    "/sys/module/nvidia/version": f"{DRIVER}\n",
    f"{LIB}/libnvidia-ml.so.1": f"{LIB}/libnvidia-ml.so.{DRIVER}",
    f"/lib/modules/{KERNEL}/modules.dep": "kernel/nvidia-550srv/nvidia.ko:\n",
    f"/boot/vmlinuz-{KERNEL}": "",
    MODULE: "linked",
    "/etc/group": "holdfast:x:990:\n",
}
MODINFO = f"version:        {DRIVER}\nlicense:        NVIDIA\nvermagic:       {KERNEL} SMP modversions\n"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def box(files: Mapping[str, Any] | None = None, **commands: Any) -> FakeHost:
    """A host with the locked driver installed; sha256sum and dpkg-deb answer from its files."""
    known: dict[str, Any] = {**LOCKED, **(files or {})}
    for library in ("libnvidia-ml", "libcuda"):
        known.pop(f"{LIB}/{library}.so.1", None)
        known.setdefault(f"{LIB}/{library}.so.{DRIVER}", "")
        known.setdefault(f"{LIB}/{library}.so.1", _link(f"{library}.so.{DRIVER}"))
    host = FakeHost.build(
        known,
        commands={
            "modinfo ...": MODINFO,
            "dpkg-query ...": DPKG,
            "sha256sum ...": lambda argv: _sums(host, argv),
            "dpkg-deb --contents ...": "",
            "apt-cache show ...": commands.get("offers", ""),
            "env ...": commands.get("simulation", ""),
        },
        spaces={FOLDER: ROOM, "/var/lib": commands.get("room", ROOM)},
    )
    return host


def _link(target: str) -> Any:
    from tests.support.fake_host import Link  # noqa: PLC0415 - beside its only use

    return Link(target)


def _sums(host: FakeHost, argv: tuple[str, ...]) -> str:
    lines = []
    for name in argv[3:]:
        for folder in (SET, f"/lib/modules/{KERNEL}", saving.CACHE):
            if host.files.exists(f"{folder}/{name}"):
                lines.append(f"{digest(host.files.read_text(f'{folder}/{name}'))}  {name}\0")
                break
    return "".join(lines)


def entry(name: str, role: str = "driver", version: str = "550.54.15-0ubuntu2", text: str = "deb") -> SavedFile:
    file = f"debs/{name}_{version}_amd64.deb"
    return SavedFile(file, len(text), 5.0, digest(text), name, "amd64", version, role, "archive")


ENTRIES = (
    entry("libnvidia-compute-550-server"),
    entry(f"linux-image-{KERNEL}", "kernel", "6.8.0-31.31"),
    entry("binutils", "link", "2.42-4ubuntu2"),
    entry("libjansson4", "support", "2.14-2build2"),
)
KO = SavedFile("modules/kernel/nvidia-550srv/nvidia.ko", 6, 5.0, digest("linked"))
DAMAGED = File("dab", mtime=5.0)
MANIFEST = Manifest(DRIVER, KERNEL, "GRUB: Ubuntu", 10.0, "root", ENTRIES, (KO,), ())


def stored(manifest: Manifest = MANIFEST, folder: str = SET) -> dict[str, Any]:
    """The files of a set."""
    files = {f"{folder}/{each.file}": File("deb", mtime=5.0) for each in manifest.packages}
    files |= {f"{folder}/{each.file}": File("linked", mtime=5.0) for each in manifest.modules}
    return {**files, f"{folder}/manifest.json": saved_driver.text(manifest)}


def plan(action: str, host: FakeHost, **values: Any) -> Plan:
    found = plugin.actions()[action]
    params = found.params.model_validate(values)
    return found.plan(host, Target("host", params, 0.0), params)


# --- what makes it up --------------------------------------------------------------------------------------------


def test_the_set_of_a_real_ubuntu_is_its_driver_its_kernel_its_linker_and_little_else() -> None:
    known = tuple(driver_set.parse(DPKG))
    wanted = driver_set.wanted(known, KERNEL)
    roles = {each.name: each.role for each in wanted}
    assert len(known) == 179
    assert [name for name, role in roles.items() if role == "driver"] == [
        "libnvidia-compute-550-server",
        f"linux-modules-nvidia-550-server-{KERNEL}",
        f"linux-objects-nvidia-550-server-{KERNEL}",
        f"linux-signatures-nvidia-{KERNEL}",
        "nvidia-firmware-550-server-550.54.15",
        "nvidia-kernel-common-550-server",
        "nvidia-utils-550-server",
    ]
    assert {name for name, role in roles.items() if role == "kernel"} == {
        f"linux-image-{KERNEL}",
        f"linux-modules-{KERNEL}",
    }
    assert roles["binutils"] == roles["libbinutils"] == "link"
    assert {name for name, role in roles.items() if role == "support"} == {"libjansson4", "libpciaccess0", "linux-base"}
    assert "libc6" not in roles  # what cannot be missing is not put back


def row(name: str, depends: str = "", *, source: str = "", priority: str = "optional", provides: str = "") -> str:
    return f"ii \t{name}\tamd64\t{source or name}\t1.0\tno\t{priority}\t10\t, {depends}\t{provides}"


def test_packages_of_another_kernel_are_left_out_and_so_is_what_leads_to_them() -> None:
    rows = (
        row("linux-modules-nvidia-550-server-6.8.0-31-generic"),
        row("linux-modules-nvidia-550-server-6.8.0-40-generic"),
        row("linux-modules-nvidia-550-server-generic", "linux-modules-nvidia-550-server-6.8.0-40-generic (= 1)"),
        row("linux-modules-nvidia-550-server-generic-hwe", "linux-modules-nvidia-550-server-6.8.0-31-generic (= 1)"),
    )
    wanted = driver_set.wanted(tuple(driver_set.parse("\n".join(rows))), KERNEL)
    assert [each.name for each in wanted] == [
        "linux-modules-nvidia-550-server-6.8.0-31-generic",
        "linux-modules-nvidia-550-server-generic-hwe",
    ]


def test_what_builds_modules_is_saved_with_its_headers_and_all_that_these_need() -> None:
    rows = (
        row("nvidia-kernel-dkms", "dkms (>= 3), nvidia-kernel-support"),
        row("dkms", "gcc | c-compiler, make, kmod"),
        row("gcc", "gcc-12, libc6 (>= 2)"),
        row("gcc-12", provides="c-compiler"),
        row("make"),
        row("kmod", priority="important"),
        row("libc6"),
        row("dpkg", "libc6", priority="required"),
        row("linux-headers-6.1.0-40-amd64", "linux-headers-6.1.0-40-common"),
        row("linux-headers-6.1.0-40-common"),
        row("linux-headers-6.1.0-41-amd64"),
        row("vim"),
    )
    wanted = driver_set.wanted(tuple(driver_set.parse("\n".join(rows))), "6.1.0-40-amd64")
    assert {each.name: each.role for each in wanted} == {
        "nvidia-kernel-dkms": "driver",
        **dict.fromkeys(
            ("dkms", "gcc", "gcc-12", "make", "linux-headers-6.1.0-40-amd64", "linux-headers-6.1.0-40-common"),
            "support",
        ),
    }


def test_what_is_not_wholly_installed_and_what_is_no_line_of_dpkgs_is_left_out() -> None:
    assert tuple(driver_set.parse("iU \tnvidia-utils\tamd64\ts\t1\tno\toptional\t1\t\t\nrubbish\n\n")) == ()


def test_a_file_of_a_package_is_named_as_apt_names_it() -> None:
    wanted = driver_set.Wanted("dkms", "all", "1:3.0-1", "support", 0)
    assert (wanted.file, wanted.spec) == ("dkms_1%3a3.0-1_all.deb", "dkms:all=1:3.0-1")


# --- the manifest ------------------------------------------------------------------------------------------------


def test_a_manifest_says_what_was_written() -> None:
    tried = saved_driver.tried(MANIFEST, Trial(True, "put back", 20.0, 7.5))
    missing = replace(tried, missing=(Missing("a", "1", "gone"),))
    host = box({f"{SET}/manifest.json": saved_driver.text(missing)})
    assert saved_driver.read(host, SET) == missing
    assert (missing.complete, tried.complete, tried.size) == (False, True, 18)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"driver": 1}', "\ufeff{", json.dumps({"packages": [{}]})])
def test_what_is_no_manifest_is_no_set(text: str) -> None:
    host = box({f"{SET}/manifest.json": text})
    with pytest.raises(FileTrouble) as caught:
        saved_driver.read(host, SET)
    assert caught.value.kind == "malformed"
    assert saved_driver.sets(host) == ()


def test_what_may_not_be_looked_at_is_not_taken_for_nothing() -> None:
    host = box({f"{SET}/manifest.json": FileTrouble("Permission denied", kind="denied")})
    with pytest.raises(FileTrouble):
        saved_driver.sets(host)


def test_a_file_that_changed_is_noticed_by_size_and_time_and_for_sure_by_its_checksum() -> None:
    host = box(stored())
    saved = Saved(SET, MANIFEST)
    assert (saved_driver.changed(host, saved), saved_driver.corrupted(host, saved)) == ((), ())
    place = f"{SET}/{ENTRIES[0].file}"
    host.files.entries[place] = File("dab", mtime=5.0)
    assert saved_driver.changed(host, saved) == ()
    assert saved_driver.corrupted(host, saved) == (f"{ENTRIES[0].file} is not what was saved (checksum)",)
    host.files.entries[place] = File("deb", mtime=6.0)
    assert saved_driver.changed(host, saved) == (f"{ENTRIES[0].file} is not as it was saved",)
    del host.files.entries[place]
    assert saved_driver.changed(host, saved) == (f"{ENTRIES[0].file} is gone",)


def test_the_newest_complete_set_of_the_locked_driver_is_the_way_back() -> None:
    lacking = replace(MANIFEST, at=30.0, kernel="6.8.0-40", missing=(Missing("x", "1", "gone"),))
    older = replace(MANIFEST, at=5.0, kernel="6.8.0-20")
    other = replace(MANIFEST, at=40.0, driver="580.178.04")
    found = [Saved(f"{FOLDER}/{i}", each) for i, each in enumerate((other, lacking, MANIFEST, older))]
    assert saved_driver.for_driver(found, DRIVER) == found[2]
    assert saved_driver.for_driver(found[:2], DRIVER) == found[1]
    assert saved_driver.for_driver(found, "535.1") is None
    assert saving.obsolete(found, found[2].folder, 2) == (found[1], found[3])
    assert saving.obsolete(found, found[2].folder, 1) == (found[0], found[1], found[3])


# --- saving ------------------------------------------------------------------------------------------------------


def offer(name: str, version: str, text: str, size: int = 3) -> str:
    return (
        f"Package: {name}\nArchitecture: amd64\nVersion: {version}\nFilename: pool/{name}.deb\nSize: {size}\n"
        f"SHA256: {digest(text)}\nDescription: a\n b\n .\n c\n\n"
    )


def sources(host: FakeHost) -> dict[str, str]:
    about = saving.subject(host)
    assert isinstance(about, saving.Subject), about
    return {each.wanted.name: each.how for each in saving.sources(host, about)}


def test_each_package_comes_from_the_first_place_that_has_it() -> None:
    offers = (
        offer("libnvidia-compute-550-server", "550.54.15-0ubuntu2", "deb")
        + offer("nvidia-utils-550-server", "550.54.15-0ubuntu2", "deb")
        + "Package: nvidia-kernel-common-550-server\nArchitecture: amd64\nVersion: 550.54.15-0ubuntu2\nStatus: ok\n\n"
    )
    cache = f"{saving.CACHE}/nvidia-utils-550-server_550.54.15-0ubuntu2_amd64.deb"
    spoilt = f"{SET}/debs/libjansson4_2.14-2build2_amd64.deb"
    host = box({**stored(), cache: "deb", spoilt: "spoilt"}, offers=offers)
    found = sources(host)
    assert found["libnvidia-compute-550-server"] == "there"
    assert found["nvidia-utils-550-server"] == "cache"
    assert found["nvidia-kernel-common-550-server"] == "nowhere"  # dpkg knows it, and no source has it
    assert found["libjansson4"] == "nowhere"  # what is there is not what was saved
    host.files.entries[cache] = File("another")
    assert sources(host)["nvidia-utils-550-server"] == "archive"
    host.files.entries[saving.REPACK] = File("#!")
    assert sources(host)["nvidia-kernel-common-550-server"] == "repack"


def lines(made: Plan) -> str:
    return "\n".join(by_hand(made))


def test_saving_fetches_what_is_missing_copies_the_modules_and_writes_the_manifest_last() -> None:
    offers = offer("libnvidia-compute-550-server", "550.54.15-0ubuntu2", "deb", 40 << 20)
    made = plan("driver.save", box(offers=offers))
    text = lines(made)
    assert "apt-get download" in text
    assert "libnvidia-compute-550-server:amd64=550.54.15-0ubuntu2" in text
    assert "cp --parents --dereference" in text
    writes = [index for index, step in enumerate(made.steps) if isinstance(step, WriteFile)]
    changes = [index for index, step in enumerate(made.steps) if isinstance(step, Command)]
    assert len(writes) == 1
    assert writes[0] > max(changes)


def test_the_manifest_names_what_is_missing_with_the_reason() -> None:
    host = box(stored())
    about = saving.subject(host)
    assert isinstance(about, saving.Subject)
    planned = saving.sources(host, about)
    made = saving.manifest(host, about, planned, ("kernel/nvidia-550srv/nvidia.ko",), "alice")
    assert {each.name for each in made.packages} == {each.name for each in ENTRIES}
    assert (made.driver, made.kernel, made.by, made.modules) == (DRIVER, KERNEL, "alice", (KO,))
    assert not made.complete
    reasons = {each.name: each.why for each in made.missing}
    assert "nor any of apt's sources" in reasons["nvidia-utils-550-server"]
    host.files.entries[MODULE] = File("rebuilt")
    again = saving.manifest(host, about, planned, ("kernel/nvidia-550srv/nvidia.ko",), "alice")
    assert [each.name for each in again.missing if each.name.endswith(".ko")] == ["kernel/nvidia-550srv/nvidia.ko"]


def test_an_archives_file_with_another_checksum_is_not_taken() -> None:
    host = box(stored(), offers=offer("libnvidia-compute-550-server", "550.54.15-0ubuntu2", "other"))
    about = saving.subject(host)
    assert isinstance(about, saving.Subject)
    made = saving.manifest(host, about, saving.sources(host, about), (), "root")
    assert {each.name: each.why for each in made.missing}["libnvidia-compute-550-server"] == (
        "its checksum is not the archive's"
    )


def test_old_sets_go_once_the_new_one_is_complete_and_the_last_of_them_stays() -> None:
    sets: dict[str, Any] = {f"{FOLDER}/580.1-6.8/debs/half.deb": "cut off before its manifest"}
    for number, version in enumerate(("535.1", "540.1"), start=1):
        older = replace(MANIFEST, driver=version, at=float(number))
        sets |= stored(older, f"{FOLDER}/{version}-{KERNEL}")
    made = plan("driver.save", box({**stored(), **sets}))
    gone = [step for step in made.steps if isinstance(step, Wait)]
    removed = [str(step.on_timeout.argv[-1]) for step in gone if isinstance(step.on_timeout, Command)]
    assert removed == [f"{FOLDER}/535.1-{KERNEL}", f"{FOLDER}/580.1-6.8"]
    assert not any(step.until.test(box(stored())) for step in gone)
    lacking = box(stored(replace(MANIFEST, missing=(Missing("a", "1", "gone"),))))
    assert all(step.until.test(lacking) for step in gone)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"/etc/holdfast/driver.lock": "580.1\n"}, "is not the locked 580.1"),
        ({"/etc/holdfast/driver.lock": "# nothing\n"}, "no driver is locked"),
        ({"/proc/sys/kernel/osrelease": ""}, "which kernel runs cannot be read"),
    ],
)
def test_what_is_not_the_locked_driver_is_not_saved_as_it(changes: dict[str, str], says: str) -> None:
    made = plan("driver.save", box(changes))
    (only,) = made.steps
    assert isinstance(only, Wait)
    assert says in only.why


def test_a_disk_without_room_is_refused_in_words_before_anything_is_fetched() -> None:
    full = Space(10 << 30, 100 << 20, 1000, 900, False)
    (only,) = plan("driver.save", box(room=full, offers="")).steps
    assert isinstance(only, Wait)
    assert "100 MiB are free" in only.why


# --- putting back ------------------------------------------------------------------------------------------------


def installed(**versions: str) -> str:
    rows = DPKG.splitlines()
    changed = []
    for line in rows:
        fields = line.split("\t")
        if fields[1] in versions:
            fields[4] = versions[fields[1]]
        if fields[4]:
            changed.append("\t".join(fields))
    return "\n".join(changed)


def lost(host: FakeHost) -> FakeHost:
    """The same host after an upgrade to another driver; nothing of the kernel was touched."""
    newer = installed(**{"libnvidia-compute-550-server": "550.163.01-1", "libjansson4": "2.15"})
    host.run.answer("dpkg-query ...", newer)
    for library in ("libnvidia-ml", "libcuda"):
        host.files.entries[f"{LIB}/{library}.so.580.178.04"] = File("")
        host.files.entries[f"{LIB}/{library}.so.1"] = _link(f"{library}.so.580.178.04")
    return host


def test_only_what_differs_is_given_to_apt_besides_the_driver_itself() -> None:
    host = lost(box(stored()))
    known = driver_set.installed(host)
    chosen = [each.name for each in restoring.chosen(host, MANIFEST, known)]
    assert chosen == [
        "libnvidia-compute-550-server"
    ]  # a newer libjansson4 is as good, and nothing is downgraded for it
    del host.files.entries[f"/boot/vmlinuz-{KERNEL}"]
    assert f"linux-image-{KERNEL}" in [each.name for each in restoring.chosen(host, MANIFEST, known)]
    host.run.answer("dpkg-query ...", installed(libjansson4="", binutils="2.43"))
    chosen = [each.name for each in restoring.chosen(host, MANIFEST, driver_set.installed(host))]
    assert {"libjansson4", "binutils"} <= set(chosen)


def test_the_plan_shows_every_command_and_touches_nothing_by_itself() -> None:
    host = lost(box(stored(), simulation="Remv nvidia-utils-580-server [580] []\nInst a\n"))
    host.files.entries["/proc/locks"] = File("")
    host.run.answer("dpkg-query --show ...", lambda argv: _query(host, argv))
    made = plan("driver.restore", host)
    text = lines(made)
    assert "APT_CONFIG=" in text
    assert f"{SET}/{ENTRIES[0].file}" in text
    assert f"depmod -a {KERNEL}" in text
    assert [isinstance(step, Refuse) for step in made.steps].count(True) == 0
    assert host.files.written == []


def _query(host: FakeHost, argv: tuple[str, ...]) -> str:
    """dpkg-query in both formats that are asked."""
    full = installed(**{"libnvidia-compute-550-server": "550.163.01-1"})
    if "Provides" in argv[-1]:
        return full
    rows = (line.split("\t") for line in full.splitlines())
    return "".join("\t".join((*row[:5], "a summary")) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda host: host.files.entries.update({f"{SET}/{ENTRIES[0].file}": DAMAGED}), "saved-driver-damaged"),
        (lambda host: host.run.answer("env ...", "Remv postgresql [15] []\n"), "would-remove"),
        (lambda host: host.run.answer("env ...", Completed((), 100, "", "E: broken", 0.1)), "cannot-restore"),
        (lambda host: host.files.entries.pop(f"{SET}/manifest.json"), "no-saved-driver"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_back_whole_is_refused_before_anything_is_touched(
    spoil: Callable[[FakeHost], object], code: str
) -> None:
    host = lost(box(stored()))
    spoil(host)
    (only,) = plan("driver.restore", host).steps
    assert isinstance(only, Refuse)
    assert only.code == code


def test_what_is_there_as_it_was_saved_is_left_alone() -> None:
    host = box(stored())
    (only,) = plan("driver.restore", host).steps
    assert isinstance(only, Noop)


def test_a_kernel_of_the_set_may_go_when_apt_says_so_and_nothing_else() -> None:
    said = f"Remv linux-image-unsigned-{KERNEL} [1]\nRemv nvidia-dkms-580 [1]\nRemv linux-image-generic [1]\n"
    host = box(simulation=said)
    known = driver_set.installed(host)
    assert restoring.would_remove(host, ("env", "x"), MANIFEST, known) == ("linux-image-generic",)
    host.run.answer("env ...", Completed((), 100, " a : Depends: b but it is not installable\n", "E: broken", 0.1))
    with pytest.raises(CommandFailed, match="Depends: b"):
        restoring.would_remove(host, ("env", "x"), MANIFEST, known)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (stored(), ""),
        ({}, "never saved here"),
        (stored(replace(MANIFEST, missing=(Missing("binutils", "1", "gone"),))), "lacks binutils: gone"),
        ({**stored(), f"{SET}/{KO.file}": File("linked", mtime=9.0)}, "is not as it was saved"),
    ],
)
def test_the_daemon_offers_it_only_where_it_can_work(files: dict[str, Any], says: str) -> None:
    unready = plugin.actions()["driver.restore"].unready
    assert unready is not None
    said = unready(box(files))
    assert says in said
    assert bool(says) == bool(said), said


PROVEN = saved_driver.tried(MANIFEST, Trial(True, "put back", 1_750_000_000.0, 7.0))
FAILED = saved_driver.tried(MANIFEST, Trial(False, "apt-get ended with status 100", 1.0, 7.0))


@pytest.mark.parametrize(
    ("files", "status", "says"),
    [
        (stored(PROVEN), "OK", "tried 2025-06-15"),
        (stored(), "OK", "never proven by a trial"),
        (stored(FAILED), "WARNING", "did not work when it was tried: apt-get"),
        ({}, "WARNING", "never saved here"),
        ({**stored(PROVEN), f"{SET}/{KO.file}": File("linked", mtime=9.0)}, "WARNING", "is not as it was saved"),
    ],
)
def test_doctor_says_whether_the_way_back_would_work_today(files: dict[str, Any], status: str, says: str) -> None:
    host = box(files)
    facts = Facts(host, host.clock.now(), None, None, None, "", None, root=True)  # type: ignore[arg-type]
    (found,) = dict(AREAS)["way-back"](facts)
    assert (found.status.value, says in found.what) == (status, True), found.what


def test_doctor_says_nothing_of_a_way_back_where_no_driver_is_locked() -> None:
    host = box({"/etc/holdfast/driver.lock": FileTrouble("missing", kind="missing")})
    facts = Facts(host, host.clock.now(), None, None, None, "", None, root=True)  # type: ignore[arg-type]
    assert list(dict(AREAS)["way-back"](facts)) == []


def test_a_set_is_tried_in_namespaces_of_its_own_and_not_again_where_the_same_was_proven() -> None:
    host = box(stored())
    text = lines(plan("driver.try_saved", host))
    assert "unshare --mount --net --ipc --uts --pid --fork --kill-child" in text
    assert f"# write {SET}/manifest.json" in text
    (only,) = plan("driver.try_saved", box(stored(PROVEN)), again=False).steps
    assert isinstance(only, Noop)
    assert "unshare" in lines(plan("driver.try_saved", box(stored(PROVEN))))
    (only,) = plan("driver.try_saved", box()).steps
    assert isinstance(only, Noop)


@pytest.mark.parametrize(
    ("said", "proven", "fails"),
    [
        ('{"proven": true, "words": "put back", "took_s": 7}', True, False),
        ('{"proven": false, "words": "not tried: no overlay", "took_s": 0}', False, False),
        ('{"proven": false, "words": "apt-get ended with status 100", "took_s": 3}', False, True),
        ("", False, False),
    ],
)
def test_how_a_trial_ended_is_in_the_manifest(said: str, proven: bool, fails: bool) -> None:
    host = box({**stored(), RESULT: said})
    steps = plan("driver.try_saved", host).steps
    (write,) = [step for step in steps if isinstance(step, WriteFile)]
    assert not isinstance(write.content, str)
    host.files.write_atomic(write.path, write.content(host))
    tried = saved_driver.read(host, SET).tried
    assert tried is not None
    assert tried.proven is proven
    (last,) = [step for step in steps if isinstance(step, Read)]
    if fails:
        with pytest.raises(HostError, match="does not put the driver back"):
            last.read(host)
    else:
        assert tried.words in last.read(host)


# --- the boot entry ----------------------------------------------------------------------------------------------

OLD, NEW = "6.8.0-31-generic", "6.8.0-149-generic"


def booting(configuration: str, environment: str = "empty.env") -> FakeHost:
    folder = DATA / "grub/ubuntu-24.04"
    return box(
        {
            **stored(),
            "/boot/grub/grub.cfg": (folder / configuration).read_text(encoding="utf-8"),
            "/boot/grub/grubenv": (folder / environment).read_text(encoding="utf-8"),
            f"/boot/vmlinuz-{NEW}": "",
        }
    )


@pytest.mark.parametrize("distribution", ["ubuntu-24.04", "debian-12"])
def test_the_entry_that_is_saved_for_a_kernel_is_the_one_that_grub_then_boots(distribution: str) -> None:
    text = (DATA / f"grub/{distribution}/saved.cfg").read_text(encoding="utf-8")
    menu = grub.menu(text)
    releases = {"ubuntu-24.04": (OLD, NEW), "debian-12": ("6.1.0-35-amd64", "6.1.0-40-amd64")}[distribution]
    for release in releases:
        entry_path = grub.entry_of(menu, release)
        assert entry_path is not None
        choice = grub.choose(menu, {"saved_entry": entry_path})
        assert grub.kernel_release(choice.entry.kernel) == release
        assert choice.named
        assert "recovery" not in choice.entry.parameters
    assert grub.entry_of(menu, "5.4.0-1-generic") is None


def test_the_saved_entry_is_set_and_where_it_is_not_used_a_drop_in_makes_it_so() -> None:
    host = booting("first.cfg", "once.env")
    made = plan("boot.set_default", host)
    text = lines(made)
    assert f"gnulinux-{OLD}-advanced" in text
    assert "unset next_entry" in text
    assert DROP_IN in text
    assert "grub-mkconfig --output /boot/grub/grub.cfg" in text
    assert made.before is not None
    assert made.before["drop_in"] is True
    assert made.before["next_entry"]
    text = lines(plan("boot.set_default", booting("saved.cfg")))
    assert (DROP_IN in text, "saved_entry=" in text) == (False, True)


def test_undo_puts_the_old_entries_back_and_changes_nothing_where_nothing_was() -> None:
    action = plugin.actions()["boot.set_default"]
    assert action.undo is not None
    host = booting("saved.cfg", "saved.env")
    old = grub.environment(host.files.read_text("/boot/grub/grubenv"))["saved_entry"]
    before = {"folder": "/boot/grub", "saved_entry": old, "next_entry": "", "drop_in": True}
    target = Target("host", NoParameters(), 0.0)
    (only,) = action.undo(host, target, None, before).steps
    assert isinstance(only, Noop)
    assert only.untouched
    host.files.entries[DROP_IN] = File("x")
    undone = lines(action.undo(host, target, None, {**before, "saved_entry": "other", "next_entry": "once"}))
    assert "set saved_entry=other" in undone
    assert "set next_entry=once" in undone
    assert f"rm --force -- {DROP_IN}" in undone


def test_a_kernel_that_boots_next_by_its_own_name_is_left_alone() -> None:
    host = booting("id.cfg")
    assert (boot.next_boot(host).release, boot.next_boot(host).pinned) == (OLD, True)
    (only,) = plan("boot.set_default", host).steps
    assert isinstance(only, Noop)


def test_another_boot_loader_is_refused_with_the_kernel_to_choose() -> None:
    host = box({**stored(), f"/boot/vmlinuz-{NEW}": ""})
    (only,) = plan("boot.set_default", host).steps
    assert isinstance(only, Refuse)
    assert OLD in only.reason
