"""Which kernel boots next: from menus that the real grub-mkconfig wrote, from bootctl, or plainly the newest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import CommandFailed, FileTrouble
from agent.host import boot, grub
from tests.support.fake_files import Directory
from tests.support.fake_host import FakeHost

DATA = Path(__file__).resolve().parents[1] / "data" / "grub"
UUID = "0a1b2c3d-0000-4000-8000-0123456789ab"
DISTRIBUTIONS = {
    "ubuntu-24.04": ("6.8.0-31-generic", "6.8.0-149-generic", "Ubuntu"),
    "debian-12": ("6.1.0-35-amd64", "6.1.0-40-amd64", "Debian GNU/Linux"),
}


def read(distribution: str, name: str) -> str:
    return (DATA / distribution / name).read_text(encoding="utf-8")


def grub_host(configuration: str, environment: str | None = None, *releases: str, **more: object) -> FakeHost:
    files = {"/boot/grub/grub.cfg": configuration, **{f"/boot/vmlinuz-{release}": "" for release in releases}, **more}
    if environment is not None:
        files["/boot/grub/grubenv"] = environment
    return FakeHost.build(files)  # type: ignore[arg-type]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("configuration", "environment", "newer", "why"),
    [
        ("first.cfg", "empty.env", True, "configured default"),
        ("first.cfg", "saved.env", True, "configured default"),
        ("first.cfg", None, True, "configured default"),
        ("first.cfg", "once.env", False, "one-shot entry"),
        ("saved.cfg", "empty.env", True, "first entry (nothing is saved)"),
        ("saved.cfg", "saved.env", False, "saved entry"),
        ("saved.cfg", "once.env", False, "one-shot entry"),
        ("id.cfg", "empty.env", False, "configured default"),
    ],
)
def test_what_grub_mkconfig_wrote_is_read_as_grub_reads_it(
    distribution: str, configuration: str, environment: str | None, newer: bool, why: str
) -> None:
    older, newest, _ = DISTRIBUTIONS[distribution]
    env = read(distribution, environment) if environment else None
    found = boot.next_boot(grub_host(read(distribution, configuration), env, older, newest))
    assert (found.release, found.by, found.how) == (newest if newer else older, "GRUB", why)
    assert found.initrd == f"initrd.img-{found.release}"
    assert found.parameters.startswith("root=/dev/vda1 ro")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("default", "newer", "pinned"),
    [
        ("0", True, False),
        ("1>0", True, False),
        ("1>2", False, False),  # another entry, as soon as a kernel comes
        ("1>0x2", False, False),
        ("Advanced options for {os}>{os}, with Linux {old}", False, True),
        ("1>{os}, with Linux {old}", False, True),
        ("Advanced options for {os}>2", False, False),
        (f"gnulinux-advanced-{UUID}>gnulinux-{{old}}-advanced-{UUID}", False, True),
        (f"gnulinux-simple-{UUID}", True, False),  # always the newest
        ("7", True, False),  # a default that names nothing is the first entry
        ("no such title", True, False),
        ("", True, False),
    ],
)
def test_every_form_of_a_default_finds_its_entry(distribution: str, default: str, newer: bool, pinned: bool) -> None:
    older, newest, name = DISTRIBUTIONS[distribution]
    text = read(distribution, "first.cfg").replace(
        'set default="0"', f'set default="{default.format(os=name, old=older)}"'
    )
    found = boot.next_boot(grub_host(text, None, older, newest))
    assert (found.release, found.pinned) == (newest if newer else older, pinned)


ENTRY = "menuentry 'One' {\n linux /vmlinuz-6.1 ro\n}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no menu entry"),
        ("set default=0\n", "no menu entry"),
        (ENTRY + "menuentry 'Two' {\n", "not closed"),
        (ENTRY + "}\n", "never opened"),
        (ENTRY + "menuentry 'Two {\n}\n", "line 4 of grub.cfg is not understood"),
        ('set default="${chosen}"\n' + ENTRY, "computed"),
        ('set default="0"\nset default="1"\n' + ENTRY, "several defaults"),
        ('set default="1"\n' + ENTRY + "submenu 'More' {\n" + ENTRY + "}\n", "stops at the submenu 'More'"),
        ('set default="1>9"\n' + ENTRY + "submenu 'More' {\n" + ENTRY + "}\n", "stops at the submenu 'More'"),
        ('set default="1"\nif [ a = b ]; then\n' + ENTRY + "fi\n" + ENTRY, "depends on a condition"),
        ("menuentry 'Windows' {\n chainloader +1\n}\n", "'Windows' loads no Linux kernel"),
        ("menuentry 'Own' {\n linux /boot/kernel ro\n}\n", "/boot/kernel, which names no version"),
    ],
)
def test_a_menu_that_does_not_say_what_boots_is_no_guess(text: str, says: str) -> None:
    found = boot.next_boot(grub_host(text, None, "6.1"))
    assert found.release is None
    assert says in found.problem


def test_a_local_menu_is_read_last_and_its_default_counts() -> None:
    custom = "menuentry 'Mine' {\n linux /vmlinuz-6.1.0-35-amd64 ro\n}\nset default=\"Mine\"\n"
    text = ENTRY.replace("6.1", "6.1.0-40-amd64")
    host = grub_host(text, None, "6.1.0-35-amd64", "6.1.0-40-amd64", **{"/boot/grub/custom.cfg": custom})
    assert boot.next_boot(host).release == "6.1.0-35-amd64"


def test_a_title_may_hold_a_greater_than_sign() -> None:
    text = 'set default="A >> B"\n' + ENTRY + "menuentry 'A > B' {\n linux /vmlinuz-6.2 ro\n}\n"
    assert boot.next_boot(grub_host(text, None, "6.1", "6.2")).release == "6.2"


def test_xen_loads_its_kernel_as_a_module() -> None:
    text = "menuentry 'Xen' {\n multiboot2 /xen-4.17.gz\n module2 /vmlinuz-6.1 placeholder root=/dev/vda1\n}\n"
    assert boot.next_boot(grub_host(text, None, "6.1")).release == "6.1"


def test_a_fallback_after_a_failed_boot_boots_the_entry_before() -> None:
    env = f"{grub.ENVIRONMENT_HEAD}initrdfail=1\nprev_entry=1>2\n"
    older, newest, _ = DISTRIBUTIONS["ubuntu-24.04"]
    assert boot.next_boot(grub_host(read("ubuntu-24.04", "first.cfg"), env, older, newest)).release == older


@pytest.mark.parametrize("environment", ["", "saved_entry=1>2\n", "\x00" * 1024])
def test_an_environment_that_is_none_is_not_taken_for_an_empty_one(environment: str) -> None:
    found = boot.next_boot(grub_host(read("debian-12", "saved.cfg"), environment, "6.1.0-40-amd64"))
    assert found.release is None
    assert "grubenv" in found.problem


def test_a_kernel_that_is_gone_from_boot_is_a_problem() -> None:
    found = boot.next_boot(grub_host(read("debian-12", "first.cfg"), None, "6.1.0-35-amd64"))
    assert found.release is None
    assert "/boot/vmlinuz-6.1.0-40-amd64, which is not in /boot" in found.problem


@pytest.mark.parametrize("kind", ["denied", "other", "large"])
def test_a_menu_that_cannot_be_read_is_a_problem(kind: str) -> None:
    trouble = FileTrouble("/boot/grub/grub.cfg: cannot", kind=kind, where="/boot/grub/grub.cfg")
    found = boot.next_boot(FakeHost.build({"/boot/grub/grub.cfg": trouble, "/boot/vmlinuz-6.1": ""}))
    assert (found.release, found.problem) == (None, "/boot/grub/grub.cfg: cannot")


@given(st.text(max_size=400))
def test_no_text_crashes_the_reader(text: str) -> None:
    found = boot.next_boot(grub_host(text, text))
    assert found.release or found.problem


@given(st.lists(st.sampled_from(["menuentry 'A' {", "submenu 'B' {", "}", "if x; then", "fi", 'set default="1>0"',
                                 "linux /vmlinuz-6.1 ro", "function f {", "else", "'"]), max_size=14))  # fmt: skip
def test_no_order_of_lines_crashes_the_reader(lines: list[str]) -> None:
    found = boot.next_boot(grub_host("\n".join(lines), None, "6.1"))
    assert found.release or found.problem


# --- other loaders -------------------------------------------------------------------------------------------


def test_a_kernel_loaded_for_kexec_cannot_be_named() -> None:
    found = boot.next_boot(FakeHost.build({boot.KEXEC_LOADED: "1\n", "/boot/vmlinuz-6.1": ""}))
    assert (found.release, found.by) == (None, "kexec")
    assert "kexec" in found.problem


LOADER = "\x06\0\0\0" + "".join(f"{letter}\0" for letter in "systemd-boot 255.4") + "\0\0"
ENTRIES = [
    {"type": "type1", "id": "m-6.8.0-149-generic.conf", "title": "Ubuntu", "version": "6.8.0-149-generic",
     "linux": "/m/6.8.0-149-generic/linux", "options": "root=UUID=x module_blacklist=nvidia", "isDefault": False},
    {"type": "type1", "id": "m-6.8.0-31-generic.conf", "title": "Ubuntu (old)", "version": "6.8.0-31-generic",
     "linux": "/m/6.8.0-31-generic/linux", "options": "root=UUID=x", "initrd": ["/m/6.8.0-31-generic/initrd.img"],
     "isDefault": True},
]  # fmt: skip


def systemd_boot(answer: object) -> FakeHost:
    files = {
        boot.LOADER_INFO: LOADER,
        "/lib/modules/6.8.0-31-generic/modules.dep": "",
        "/lib/modules/6.8.0-3/modules.dep": "",
        "/lib/modules/6.8.0-149-generic/modules.dep": "",
        "/boot/grub/grub.cfg": ENTRY,  # left behind by an older installation
    }
    return FakeHost.build(files, commands={"bootctl list --json=short": answer})


def test_systemd_boot_is_asked_where_it_loaded_this_boot() -> None:
    found = boot.next_boot(systemd_boot(json.dumps(ENTRIES)))
    assert (found.release, found.by, found.entry) == ("6.8.0-31-generic", "systemd-boot", "Ubuntu (old)")


def test_a_unified_kernel_image_is_known_by_its_file_name() -> None:
    entries = [{"type": "type2", "id": "debian-6.8.0-149-generic.efi", "title": "Debian", "isDefault": True}]
    assert boot.next_boot(systemd_boot(json.dumps(entries))).release == "6.8.0-149-generic"


@pytest.mark.parametrize(
    "answer",
    ["", "[]", "{}", "not JSON", 1, json.dumps([{"id": "windows", "isDefault": True}]),
     CommandFailed("bootctl: not found", code="command-not-found")],
)  # fmt: skip
def test_what_bootctl_does_not_say_is_a_problem(answer: object) -> None:
    found = boot.next_boot(systemd_boot(answer))
    assert (found.release, found.by) == (None, "systemd-boot")
    assert found.problem


def test_without_a_boot_loader_the_newest_kernel_counts_by_debians_order() -> None:
    files = {f"/boot/vmlinuz-{release}": "" for release in ("6.1.0-9-amd64", "6.1.0-40-amd64", "6.1.0-41-amd64.old")}
    found = boot.next_boot(FakeHost.build({**files, "/boot/vmlinuz": "", "/boot/config-6.12": ""}))
    assert (found.release, found.by) == ("6.1.0-40-amd64", "newest")


def test_a_container_without_a_kernel_says_that_its_host_decides() -> None:
    found = boot.next_boot(FakeHost.build({"/run/systemd/container": "lxc", "/boot": Directory()}))
    assert (found.release, found.by) == (None, "container")


def test_a_host_without_anything_in_boot_is_not_guessed_at() -> None:
    assert "neither a boot loader" in boot.next_boot(FakeHost.build({"/boot": Directory()})).problem


# --- Secure Boot ---------------------------------------------------------------------------------------------

OTHER = "/sys/firmware/efi/efivars/BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({boot.SECURE_BOOT: "\x06\0\0\0\x01"}, True),
        ({boot.SECURE_BOOT: "\x06\0\0\0\0"}, False),
        ({OTHER: "x"}, False),
        ({"/sys/firmware/efi/fw_platform_size": "64"}, None),
        ({boot.SECURE_BOOT: FileTrouble("denied", kind="denied")}, None),
    ],
)
def test_secure_boot_is_what_the_firmware_says(files: dict[str, str], expected: bool | None) -> None:
    assert boot.secure_boot(FakeHost.build(files)) is expected  # type: ignore[arg-type]
