"""Reading processes: threads, arguments, control groups; and what must never be kept of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import FileTrouble
from agent.host import process
from tests.support.fake_host import FakeHost, Link

# As Linux 6.1 printed it for a llama-server, field by field (proc(5)).
FIELDS = (
    "1 42 42 0 -1 4194560 1200 0 7 0 350 50 0 0 20 0 4 0 123456 1000000 2000 18446744073709551615 1 1 0 0 0 0 0 4096 "
    "17642 0 0 0 17 1 0 0 9 0 0 0 0 0 0 0 0 0 0"
)


def stat(pid: int = 42, name: str = "llama-server", state: str = "S") -> str:
    return f"{pid} ({name}) {state} {FIELDS}\n"


def thread(pid: int, tid: int, name: str = "llama-server", state: str = "S", cpu_ns: int = 5) -> dict[str, str]:
    folder = f"/proc/{pid}/task/{tid}"
    return {
        f"{folder}/stat": stat(tid, name, state),
        f"{folder}/schedstat": f"{cpu_ns} 77 12\n",
        f"{folder}/status": "Name:\tx\nvoluntary_ctxt_switches:\t31\nnonvoluntary_ctxt_switches:\t4\n",
    }


def test_a_thread_is_read_whole() -> None:
    host = FakeHost.build({**thread(42, 42, cpu_ns=123_456_789), **thread(42, 43, "http")})
    main, other = process.threads(host, 42, only_main=False)
    assert main == process.ThreadReading(42, "llama-server", "S", 123_456_789, 7, 31, 9)
    assert (other.tid, other.name) == (43, "http")
    assert process.threads(host, 42, only_main=True) == (main,)


@pytest.mark.parametrize("name", ["a b", "x) S 1 2 3", "((", ")", "() R", "tmux: server", "", "a\nb", "é"])
def test_a_command_name_cannot_mislead(name: str) -> None:
    (reading,) = process.threads(FakeHost.build(thread(42, 42, name, "D")), 42, only_main=True)
    assert (reading.name, reading.state, reading.major_faults) == (name, "D", 7)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=15))
def test_no_command_name_at_all_can_mislead(name: str) -> None:
    (reading,) = process.threads(FakeHost.build(thread(42, 42, name)), 42, only_main=True)
    assert (reading.name, reading.blkio_ticks) == (name, 9)


def test_without_scheduler_statistics_cpu_time_comes_from_clock_ticks() -> None:
    files = thread(42, 42)
    del files["/proc/42/task/42/schedstat"]
    (reading,) = process.threads(FakeHost.build(files), 42, only_main=True)
    assert reading.cpu_ns == 400 * 10_000_000  # 350 + 50 ticks of 10 ms


def test_a_thread_that_ends_meanwhile_is_left_out() -> None:
    files = {**thread(42, 42), **thread(42, 43)}
    gone = FileTrouble("No such process", kind="missing")
    host = FakeHost.build({**files, "/proc/42/task/43/stat": gone})
    assert [each.tid for each in process.threads(host, 42, only_main=False)] == [42]


@pytest.mark.parametrize("only_main", [True, False])
def test_a_process_that_is_gone_is_missing(only_main: bool) -> None:
    with pytest.raises(FileTrouble) as trouble:
        process.threads(FakeHost.build(), 42, only_main)
    assert trouble.value.kind == "missing"


@pytest.mark.parametrize("text", ["", "42 (x) S 1 2", "42 x S", "\n"])
def test_a_stat_that_is_not_understood_is_malformed(text: str) -> None:
    with pytest.raises(FileTrouble) as trouble:
        process.started_boot_s(FakeHost.build({"/proc/42/stat": text}), 42)
    assert trouble.value.kind == "malformed"


def test_the_start_is_on_the_boot_clock() -> None:
    assert process.started_boot_s(FakeHost.build({"/proc/42/stat": stat()}), 42) == 1234.56


@pytest.mark.parametrize(
    ("text", "argv"),
    [("a\0-m\0x y\0", ("a", "-m", "x y")), ("", ()), ("\0\0", ()), ("rewritten title", ("rewritten title",)),
     ("a\0\0b\0", ("a", "", "b"))],
)  # fmt: skip
def test_arguments_are_read_word_by_word(text: str, argv: tuple[str, ...]) -> None:
    assert process.command_line(FakeHost.build({"/proc/42/cmdline": text}), 42) == argv


@pytest.mark.parametrize(("line", "dumping"), [("CoreDumping:\t1\n", True), ("CoreDumping:\t0\n", False), ("", False)])
def test_a_core_being_written_is_seen(line: str, dumping: bool) -> None:
    assert process.core_dumping(FakeHost.build({"/proc/42/status": f"Name:\tx\n{line}Threads:\t1\n"}), 42) is dumping


def test_where_a_thread_waits_in_the_kernel_is_told_when_we_may_know() -> None:
    files = {**thread(42, 42, state="D"), **thread(42, 43, state="R"), **thread(42, 44)}
    files |= {"/proc/42/task/42/wchan": "nv_wait", "/proc/42/task/43/wchan": "0"}
    denied = FileTrouble("no", kind="denied")
    found = process.kernel_wait(FakeHost.build({**files, "/proc/42/task/44/wchan": denied}), 42)
    assert [(each.tid, each.state, each.wchan) for each in found] == [
        (42, "D", "nv_wait"),
        (43, "R", ""),
        (44, "S", None),
    ]


# --- control groups ------------------------------------------------------------------------------------------

GROUP = "/sys/fs/cgroup/system.slice/a.service"
V2 = {"/sys/fs/cgroup/cgroup.controllers": "cpu io memory\n"}


def test_processes_of_a_group_and_of_those_below_it_are_found() -> None:
    host = FakeHost.build(
        {
            **V2,
            f"{GROUP}/cgroup.procs": "7\n5\n",
            f"{GROUP}/worker/cgroup.procs": "9\n",
            f"{GROUP}/worker/x/cgroup.procs": "",
        }
    )
    assert process.cgroup_pids(host, "/system.slice/a.service") == (5, 7, 9)


def test_a_group_that_is_gone_is_empty() -> None:
    assert process.cgroup_pids(FakeHost.build(V2), "/system.slice/a.service") == ()
    assert not process.cgroup_frozen(FakeHost.build(V2), "/system.slice/a.service")


def test_a_group_that_cannot_be_seen_is_not_an_empty_one() -> None:
    with pytest.raises(FileTrouble):
        process.cgroup_pids(FakeHost.build(), "/system.slice/a.service")
    denied = FileTrouble("no", kind="denied")
    with pytest.raises(FileTrouble):
        process.cgroup_pids(FakeHost.build({**V2, f"{GROUP}/cgroup.procs": denied}), "/system.slice/a.service")


def test_a_hybrid_host_shows_its_groups_beside_v1() -> None:
    top = "/sys/fs/cgroup/unified"
    host = FakeHost.build({f"{top}/cgroup.controllers": "", f"{top}/system.slice/a.service/cgroup.procs": "3\n"})
    assert process.cgroup_pids(host, "/system.slice/a.service") == (3,)


@pytest.mark.parametrize("group", ["", "system.slice/a.service", "/../../etc", "/system.slice/../x"])
def test_what_is_no_control_group_is_refused(group: str) -> None:
    with pytest.raises(FileTrouble):
        process.cgroup_pids(FakeHost.build(V2), group)


@pytest.mark.parametrize(
    ("text", "frozen"), [("populated 1\nfrozen 1\n", True), ("populated 1\nfrozen 0\n", False), ("", False)]
)
def test_a_frozen_group_is_seen(text: str, frozen: bool) -> None:
    host = FakeHost.build({**V2, f"{GROUP}/cgroup.events": text})
    assert process.cgroup_frozen(host, "/system.slice/a.service") is frozen


def test_pressure_is_read_where_it_is_measured() -> None:
    rows = "some avg10=12.50 avg60=1.00 avg300=0.10 total=99\nfull avg10=3.25 avg60=0.00 avg300=0.00 total=9\n"
    unsupported = FileTrouble("Operation not supported", kind="other")
    host = FakeHost.build(
        {**V2, f"{GROUP}/cpu.pressure": rows, f"{GROUP}/memory.pressure": rows, f"{GROUP}/io.pressure": unsupported}
    )
    assert process.pressure(host, "/system.slice/a.service") == process.Pressure(12.5, 3.25, None)


# --- redaction -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "clean"),
    [
        (["llama-server", "-m", "x.gguf", "--api-key", "sekrit", "--port", "80"],
         ("llama-server", "-m", "x.gguf", "--api-key", "[redacted]", "--port", "80")),
        (["--api-key=sekrit"], ("--api-key=[redacted]",)),
        (["--api-key-file", "/etc/key"], ("--api-key-file", "/etc/key")),
        (["--hf-token", "sekrit"], ("--hf-token", "[redacted]")),
        (["-p", "sekrit words"], ("-p", "[redacted]")),
        (["--prompt", "sekrit"], ("--prompt", "[redacted]")),
        (["--system-prompt=sekrit"], ("--system-prompt=[redacted]",)),
        (["env", "HF_TOKEN=sekrit", "OPENAI_API_KEY=sekrit", "vllm"],
         ("env", "HF_TOKEN=[redacted]", "OPENAI_API_KEY=[redacted]", "vllm")),
        (["curl", "http://me:sekrit@host/x"], ("curl", "http://[redacted]@host/x")),
        (["curl", "-H", "Authorization: Bearer sekrit"], ("curl", "-H", "Authorization: [redacted]")),
        (["--api-key", "--port", "80"], ("--api-key", "--port", "80")),
        (["--max-num-seqs", "2", "--max-tokens", "5", "--tokenizer", "x"],
         ("--max-num-seqs", "2", "--max-tokens", "5", "--tokenizer", "x")),
        (["sk-sekrit0123456789"], ("[redacted]",)),
        ([], ()),
    ],
)  # fmt: skip
def test_secrets_and_prompts_do_not_survive(argv: list[str], clean: tuple[str, ...]) -> None:
    assert process.redact_argv(argv) == clean
    assert "sekrit" not in repr(process.redact_argv(argv))


def test_a_link_in_a_group_is_not_followed() -> None:
    host = FakeHost.build({**V2, f"{GROUP}/cgroup.procs": "3\n", f"{GROUP}/loop": Link("..")})
    assert process.cgroup_pids(host, "/system.slice/a.service") == (3,)
