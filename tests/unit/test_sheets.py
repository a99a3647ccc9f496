"""The printed page: what is typed from paper is the command that was planned, and all of it is on one A4."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import steps
from agent.host.files import RealFiles
from agent.plugin import Command, Plan, WriteFile
from agent.runbook import Step, load
from agent.views import sheet as sheets
from agent.views import sheet_layout
from agent.views.sheet import Line, Part, Place, Sheet
from agent.views.sheet_html import as_html
from agent.views.sheet_pdf import as_pdf
from agent.views.shell_lines import parted, words, wrapped
from agent.views.shell_names import named
from tests.support.cli import Said, holdfast
from tests.support.fake_host import FakeHost, timed_out
from tests.unit.test_cli_run import CONFIG, FILES

ROOT = Path(__file__).resolve().parents[2]
PLACE = Place("box", "llama.cpp", "chat.service", 1_800_000_000.0, "0.1.0")
RELEASE = "/opt/llama.cpp/releases/b10470-0123456789ab+cuda12.9+sm89,90a"
WORK = "/var/cache/holdfast-build/chat/work"


def typed(rows: list[str]) -> list[str]:
    """The words that a shell makes of these lines."""
    return shlex.split("\n".join(rows).replace("\\\n", ""))


# --- lines ---------------------------------------------------------------------------------------------------

WORDS = st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=90), min_size=1, max_size=12)


@given(WORDS, st.integers(20, 110))
def test_a_command_in_lines_is_still_that_command(argv: list[str], columns: int) -> None:
    rows = wrapped(shlex.join(argv), columns)
    assert typed(rows) == argv
    assert all(len(row) <= columns for row in rows)


def test_a_long_word_is_broken_where_one_expects_it_and_goes_on_without_a_blank() -> None:
    rows = wrapped(f"mv {RELEASE}/bin {WORK}", 40)
    assert rows == [
        "mv \\",
        "    /opt/llama.cpp/releases/\\",
        "b10470-0123456789ab+cuda12.9+sm89,90a/\\",
        "bin \\",
        "/var/cache/holdfast-build/chat/work",
    ]


def test_a_word_that_just_fits_a_line_is_not_broken() -> None:
    assert wrapped(f"ls --all {WORK}/{'x' * 20}", 60) == ["ls --all \\", f"{WORK}/{'x' * 20}"]


def test_notes_are_no_part_of_the_command_and_a_quoted_hash_is_no_note() -> None:
    assert parted("a b    # until it is so    # only if not") == ("a b", "until it is so, only if not")
    assert parted("# wait until it is so") == ("", "wait until it is so")
    assert parted("echo 'x    # y'") == ("echo 'x    # y'", "")


# --- names ---------------------------------------------------------------------------------------------------


def expanded(before: list[str], command: str) -> list[str]:
    """The words that bash makes of a command after these assignments (a run of these names is simple enough here)."""
    folders: dict[str, str] = {}
    for each in (each for each in before if "=(" not in each):
        name, value = each.split("=", 1)
        folders[name] = re.sub(r"\$([A-H])", lambda m: folders[m[1]], value)
    arrays = {name: inner[:-1] for name, inner in (each.split("=(", 1) for each in before if "=(" in each)}
    for name, inner in arrays.items():
        command = command.replace(f'"${{{name}[@]}}"', inner)
    found = []
    for word in words(command):
        plain = re.fullmatch(r"[A-Za-z0-9_@%+=:,./$-]+", word)
        found.append(re.sub(r"\$([A-H])", lambda m: folders[m[1]], word) if plain else shlex.split(word)[0])
    return found


BUILD = (
    *("systemd-run", "--quiet", "--unit=holdfast-build-chat.service", "--property=ProtectSystem=strict"),
    *(f"--property=ReadWritePaths={WORK}", "--property=Nice=19", f"--setenv=HOME={WORK}/home", "--setenv=X=a b", "--"),
)
COMMANDS = [
    (*BUILD, "cmake", "-S", f"{WORK}/src", "-B", f"{WORK}/build", "-DCMAKE_INSTALL_RPATH=$ORIGIN"),
    (*BUILD, "cmake", "--build", f"{WORK}/build", "--target", "llama-server"),
    ("tar", "--extract", f"--file={WORK}/release.tar", f"--directory={RELEASE}"),
    (f"{RELEASE}/bin/llama-server", "--version"),
    ("mv", RELEASE, f"{RELEASE}.2"),
    ("rm", "--", f"'{WORK}' $A"),
]


def test_names_for_what_is_repeated_leave_every_command_what_it_is() -> None:
    before, commands = named([shlex.join(each) for each in COMMANDS])
    assert before[0] in (f"A={WORK}", f"A={RELEASE}")
    assert any(each.startswith("a=(systemd-run --quiet --unit=holdfast-build-chat.service") for each in before)
    assert [expanded(before, each) for each in commands] == [list(each) for each in COMMANDS]
    assert commands[0].startswith('"${a[@]}" cmake -S $')
    assert sum(map(len, before + commands)) < 0.75 * sum(len(shlex.join(each)) for each in COMMANDS)


def test_what_is_not_worth_a_name_gets_none() -> None:
    few = ["ls /etc/holdfast", "cat /etc/holdfast/holdfast.toml"]
    assert named(few) == ([], few)


# --- the page ------------------------------------------------------------------------------------------------


def a_sheet(commands: list[str], count: int = 1) -> Sheet:
    parts = tuple(
        Part(number, f"Step {number}", "left out in a rehearsal" if number > 2 else "", tuple(map(Line, commands)))
        for number in range(1, count + 1)
    )
    return Sheet(
        "rebuild", "Rebuild it", "engine:chat", (("Host", "box"),), (("When", "it is broken"),), parts,
        (Part(0, "Proof", lines=(Line("holdfast check engine.generates", "OK within 10 min"),)),), "plan 0123",
    )  # fmt: skip


def rows(sheet: Sheet) -> list[sheet_layout.Row]:
    return [row for column in sheet_layout.laid(sheet).columns for row in column]


def pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b(?!s)", pdf))


def test_a_short_plan_is_set_large_in_one_column() -> None:
    found = sheet_layout.laid(a_sheet(["systemctl start chat.service"]))
    assert (found.size, len(found.columns), found.fits) == (11.5, 1, True)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_whatever_its_length_nothing_is_lost_too_small_or_off_the_page(count: int) -> None:
    sheet = a_sheet([shlex.join(each) for each in COMMANDS[:5]], count)
    found = sheet_layout.laid(sheet)
    assert found.fits
    assert found.size >= 8.0
    width = sheet_layout.column_width(len(found.columns))
    for column in found.columns:
        assert sum(row.height for row in column) < sheet_layout.top(found.head)
        assert all(0.6 * row.size * len(row.text) + row.indent <= width for row in column if row.font == "mono")
    names = [row.text for row in rows(sheet) if row.font == "bold"]
    assert [name for name in names if name[0].isdigit()][-1].startswith(f"{count}. Step {count}")
    assert pages(as_pdf([sheet])) == 1


def test_a_plan_that_cannot_be_one_page_goes_on_on_the_next_and_loses_nothing() -> None:
    sheet = a_sheet([f"systemctl restart unit-{number}.service" for number in range(400)])
    assert not sheet_layout.laid(sheet).fits
    assert pages(as_pdf([sheet])) > 1
    assert sum("systemctl restart" in row.text for row in rows(sheet)) == 400


def test_the_name_of_a_step_is_never_the_last_of_its_column() -> None:
    for count in range(1, 60):
        found = sheet_layout.laid(a_sheet(["systemctl start a", "systemctl stop b"], count))
        assert all(not column[-1].keep for column in found.columns)


def test_the_pdf_is_a4_says_the_commands_and_is_the_same_every_time() -> None:
    sheet = a_sheet(["systemctl kill --signal=SIGKILL chat.service", "echo '(a \\ b)' – …"])
    pdf = as_pdf([sheet])
    assert pdf == as_pdf([sheet])
    assert b"/MediaBox [0 0 595.28 841.89]" in pdf
    assert b"(systemctl kill --signal=SIGKILL chat.service) Tj" in pdf
    assert rb"(echo '\(a \\ b\)' " + "– …".encode("cp1252") in pdf
    assert pages(as_pdf([sheet, sheet])) == 2


def test_html_is_one_page_each_without_anything_to_fetch_and_harmless() -> None:
    html = as_html([a_sheet(["echo '<script>' & x"]), a_sheet(["ls"])])
    assert html.count("<section") == 2
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "size: A4" in html
    assert not re.search(r"(?:src|href)=|https?:", html)


def test_markdown_and_text_hold_whole_commands_to_copy() -> None:
    sheet = a_sheet([shlex.join(COMMANDS[0]), "ls # x"])
    assert shlex.join(COMMANDS[0]) in sheets.as_markdown(sheet).splitlines()
    text = sheets.as_text(sheet).splitlines()
    assert shlex.join(COMMANDS[0]) in text
    assert all(line.startswith(("#", "systemd-run", "ls", "holdfast")) for line in text if line)


def test_a_rebuild_with_cuda_for_three_kinds_of_cards_is_one_page() -> None:
    plan = json.loads((ROOT / "tests/data/printed-page/rebuild-for-three-cards.json").read_text())
    told = load(RealFiles(ROOT), directories=("/runbooks",)).by_id["rebuild-llama-cpp"]
    steps_then = (
        Step(each["name"], "", {}, rehearsed=each["rehearsed"], best_effort=each["best_effort"]) for each in plan
    )
    page = sheets.of_runbook(replace(told, steps=tuple(steps_then)), "engine:chat", plan, PLACE, "0" * 64)
    found = sheet_layout.laid(page)
    assert (found.fits, found.size >= 8.0, pages(as_pdf([page]))) == (True, True, 1)
    text = sheets.as_text(page)
    assert "Up to step 4 nothing that serves is touched" in text
    assert next(line for line in text.splitlines() if "left out in a rehearsal" in line).startswith("# 5. Install")
    assert "# 9. Keep it (left out in a rehearsal; if it fails, go on)" in text
    assert "until it has no process left, at most 30 s" in text


def test_an_engine_that_is_not_rebuilt_here_gets_a_page_of_what_to_do_instead() -> None:
    without = sheets.of_unbuildable("rebuild-llama-cpp", "engine:chat", PLACE, ["restart-engine"])
    assert "[engine.rebuild]" in sheets.as_text(without)
    wheels = sheets.of_unbuildable("rebuild-llama-cpp", "engine:big", Place("box", "vllm", "", 0.0, "0.1.0"), [])
    assert "not compiled on this host" in sheets.as_text(wheels)
    for each in (without, wheels):
        assert pages(as_pdf([each])) == 1
        assert "sudo systemctl restart" in sheets.as_text(each)


# --- files ---------------------------------------------------------------------------------------------------


def test_what_a_file_gets_can_be_typed_but_is_in_no_record() -> None:
    plan = Plan((WriteFile("/etc/x.conf", 'a = "50 %"\nb\\c\n', 0o600), Command(("true",), 1)))
    assert steps.by_hand(plan) == ["# write /etc/x.conf (mode 600)", "true"]
    line, _ = steps.by_hand(plan, contents=True)
    assert line == "printf -- 'a = \"50 %%\"\\nb\\\\c\\n' | install --mode=0600 /dev/stdin /etc/x.conf"


def test_our_own_notes_and_what_only_a_run_can_know_are_left_out_by_hand() -> None:
    own = WriteFile("/var/lib/holdfast-runner/holds.json", "{}")
    seen = WriteFile("/opt/x/provenance.json", lambda _: "later")
    assert steps.by_hand(Plan((own, seen, Command(("true",), 1))), contents=True) == ["true"]
    long = WriteFile("/etc/long", "x" * 5000)
    assert steps.by_hand(Plan((long,)), contents=True) == ["# write /etc/long (mode 644)"]


# --- the command ---------------------------------------------------------------------------------------------


def printed(*arguments: str) -> Said:
    """`holdfast runbook print`, where one engine serves without a GPU."""
    return holdfast("runbook", "print", *arguments, host=FakeHost.build(BOX, units={"chat.service": {}}))


REBUILD = """\
id: rebuild
title: Rebuild it
for: []
engines: [llama.cpp]
explain: For a test.
steps:
  - {name: Compile, use: build.compile, with: {engine: "{{ engine.name }}"}}
"""
BOX = {
    **FILES,
    "/etc/holdfast/holdfast.toml": f"{CONFIG}gpu = false\n",
    "/usr/share/holdfast/runbooks/rebuild.yaml": REBUILD,
    "/sys/fs/cgroup/cgroup.controllers": "cpu",
    "/sys/fs/cgroup/system.slice/chat.service/cgroup.procs": "42\n",
}


def test_a_runbook_is_printed_in_every_format_and_without_the_daemon() -> None:
    said = printed("restart-engine")
    assert said.code == 0, said.err
    assert said.out.startswith("# restart-engine on engine:chat: Restart a dead or wedged inference engine\n")
    assert "\nsystemctl start --no-block chat.service\n" in said.out
    assert "\nholdfast check engine.generates --subject engine:chat    # OK within 10 min\n" in said.out
    assert "```sh" in printed("restart-engine", "--format", "md").out
    assert "<section" in printed("restart-engine", "--format", "html").out
    assert printed("restart-engine", "--format", "docx").code == 64


def test_a_pdf_is_written_to_a_file_or_a_pipe_and_never_to_a_terminal(tmp_path: Path) -> None:
    said = printed("restart-engine", "--format", "pdf", "--output", f"{tmp_path}/one.pdf")
    assert said.out == f"1 page in {tmp_path}/one.pdf\n"
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert pages(pdf) == 1
    assert b"(systemctl start --no-block chat.service) Tj" in pdf
    host = FakeHost.build(BOX, units={"chat.service": {}})
    refused = holdfast("runbook", "print", "restart-engine", "--format", "pdf", host=host, typed="")
    assert (refused.code, "--output FILE" in refused.err) == (64, True)
    nowhere = printed("restart-engine", "--output", f"{tmp_path}/no/such/folder")
    assert (nowhere.code, "cannot be written" in nowhere.err) == (64, True)


def test_an_engine_without_rebuild_gets_its_own_page() -> None:
    said = printed("rebuild", "--engine", "chat")
    assert said.code == 0, said.err
    assert "cannot be rebuilt here: what to do instead" in said.out
    assert "journalctl --boot --lines=60 --unit chat.service" in said.out


def test_the_binder_has_a_page_for_every_runbook_that_fits(tmp_path: Path) -> None:
    said = printed("--all", "--format", "pdf", "--output", f"{tmp_path}/binder.pdf", "--json")
    assert said.code == 0, said.err
    found = [(each["runbook"], each["subject"]) for each in said.json["data"]["pages"]]
    assert found == [("rebuild", "engine:chat"), ("restart-engine", "engine:chat")]
    assert pages((tmp_path / "binder.pdf").read_bytes()) == 2
    assert printed("--all", "--engine", "chat").code == 64
    assert printed().code == 64


def test_in_the_binder_a_plan_that_cannot_be_made_says_why() -> None:
    said = holdfast("runbook", "print", "--all", host=FakeHost.build(BOX, commands={"systemctl ...": timed_out()}))
    assert said.code == 0, said.err
    assert "Its plan could not be made" in said.out
