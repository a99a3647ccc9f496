"""The kernel's log: the corpus of excerpts, what survives from look to look, and what must never happen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import frame, plugin
from agent.diagnose import diagnose
from agent.errors import FileTrouble
from agent.host import kernel_log, xid
from agent.model import CheckResult, Moment, Observation, Observed, Results, Status, Verdict
from agent.plugin import Target
from tests.support.fake_host import START, FakeHost, journal

DATA = Path(__file__).resolve().parents[1] / "data"
CASES = yaml.safe_load((DATA / "kernel-log" / "corpus.yaml").read_text(encoding="utf-8"))
CHECK = plugin.checks()["gpu.xid"]
BOOT_S = START.boot_s
LOST = "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."
FAULT = "NVRM: Xid (PCI:0000:01:00): 31, pid=4242, name=llama-server, Ch 00000008"
ENGINE = {
    "/sys/module/nvidia/version": "580.95.05\n",
    "/proc/4242/cgroup": "0::/system.slice/llama-server.service\n",
    "/proc/4242/stat": "4242 (llama-server) S " + " ".join(["0"] * 18) + " 100000 " + " ".join(["0"] * 30),
}


def record(text: str, number: int, at_s: float = BOOT_S - 60, facility: int = 0) -> bytes:
    """One record as the device gives it, with the line of a device below it as some have."""
    return f"{facility << 3 | 4},{number},{at_s * 1e6:.0f},-;{text}\n SUBSYSTEM=pci\n".encode()


def written(case: dict[str, Any]) -> bytes:
    """The records of a corpus case."""
    number, found = 10, b""
    for line in case["log"].splitlines() * case.get("repeat", 1):
        text, facility = line, 0
        if text.startswith("+"):
            skipped, _, text = text[1:].partition(" ")
            number += int(skipped)
        if text.startswith("user: "):
            text, facility = text.removeprefix("user: "), 1
        found += record(text, number, BOOT_S - 60 + number / 1000, facility)
        number += 1
    return found


def a_host(*reads: bytes | Exception, **changes: Any) -> FakeHost:
    return FakeHost.build({**ENGINE, **changes}, commands={("journalctl", ...): journal()}, kmsg=reads)


def look(host: FakeHost, before: CheckResult | None = None, **params: Any) -> CheckResult:
    target = Target("host", CHECK.params.model_validate(params), CHECK.every_s)
    return frame.run_check(host, CHECK, target, frame.before_of(before))


def findings(result: CheckResult, unit: Verdict = Verdict.READY) -> list[Any]:
    """What the causes make of it, on a host whose engine's unit is like this."""
    engine = CheckResult(
        "engine.unit", "engine:chat", unit.status, "", (Observation("unit.name", "llama-server.service"),),
        result.at, 0.0, unit,
    )  # fmt: skip
    results = Results({(each.check, each.subject): each for each in (result, engine)})
    return list(diagnose(plugin.rules(), results, result.at))


def said(event: dict[str, Any]) -> str:
    """An event as the corpus writes it."""
    parts = [event["key"], event["gpu"]]
    parts += [f"x{event['count']}"] if event["count"] > 1 else []
    parts += [f"pid={event['pid']}"] if event["pid"] is not None else []
    parts += [f"follows={event['follows']}"] if event["follows"] else []
    parts += [f"mig={event['instance']}"] if event["instance"] else []
    return " ".join(parts)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_an_excerpt_means_what_the_corpus_says(case: dict[str, Any]) -> None:
    result = look(a_host(written(case)))
    assert [said(each) for each in result.value("events")] == case["events"]
    assert result.status == case["status"], result.summary
    assert sorted(f"{each.id} {each.subject}" for each in findings(result)) == sorted(case["findings"])


def test_the_corpus_is_large_and_says_where_each_form_comes_from() -> None:
    assert len(CASES) >= 60
    assert len({case["name"] for case in CASES}) == len(CASES)
    assert all(case["from"] for case in CASES)


# --- the catalogue -------------------------------------------------------------------------------------------


def test_the_catalogue_knows_every_code_up_to_176_with_its_source() -> None:
    entries = xid.catalogue().entries
    assert {entry.code for entry in entries.values()} - {None} == set(range(1, 177))
    for entry in entries.values():
        assert entry.source
        assert len(entry.meaning) > 20, entry.key


def test_every_cause_of_the_catalogue_is_one_of_ours() -> None:
    causes = {entry.cause for entry in xid.catalogue().entries.values()} - {""}
    assert causes <= set(plugin.rules())
    assert causes == {"gpu-lost", "gpu-reset-required", "gpu-memory-failing"}


@pytest.mark.parametrize("code", [46, 62, 79, 95, 109, 110, 119, 120, 136, 140, 143, 155, 158])
def test_what_nvidia_says_needs_a_reset_or_a_reboot_is_critical(code: int) -> None:
    entry = xid.catalogue().entries[str(code)]
    assert entry.immediate in ("RESET_GPU", "RESTART_BM")
    assert (entry.severity, entry.until_reset) == ("critical", True)


# --- from look to look ---------------------------------------------------------------------------------------


def test_a_look_goes_on_where_the_last_one_ended() -> None:
    host = a_host(record(LOST, 1), record("eth0: Link is Up", 2))
    first = look(host)
    second = look(host, first)
    assert (first.status, second.status) == (Status.CRITICAL, Status.CRITICAL)
    assert [each["count"] for each in second.value("events")] == [1]


def test_after_a_restart_the_same_log_is_not_counted_twice_and_nothing_in_between_is_missed() -> None:
    first = look(a_host(record(FAULT, 1)))
    again = look(a_host(record(FAULT, 1) + record(LOST, 2)), first)
    assert [said(each) for each in again.value("events")] == ["31 0000:01:00 pid=4242", "79 0000:01:00"]


def test_what_was_observed_before_is_not_changed() -> None:
    host = a_host(record(FAULT, 1), record(FAULT, 2))
    first = look(host)
    kept = json.dumps(first.value("events"))
    assert look(host, first).value("events")[0]["count"] == 2
    assert json.dumps(first.value("events")) == kept


def test_another_boot_starts_afresh() -> None:
    host = a_host(record(LOST, 900))
    first = look(host)
    host.clock.reboot()
    host.kmsg.reads = [record("eth0: Link is Up", 0, 1.0)]
    second = look(host, first)
    assert (second.status, second.value("events"), second.value("lost")) == (Status.OK, [], 0)


def test_a_gap_between_two_looks_is_unknown_for_an_hour_and_then_over() -> None:
    host = a_host(record("eth0: Link is Up", 1), record("eth0: Link is Down", 700))
    host.kmsg.still = record("eth0: Link is Down", 700)
    second = look(host, look(host))
    assert second.status is Status.UNKNOWN
    assert "698 records of the kernel's log were lost" in second.summary
    assert host.kmsg.rewound == 1
    host.clock.advance(3599)
    third = look(host, second)
    host.clock.advance(2)
    assert (third.status, look(host, third).status) == (Status.UNKNOWN, Status.OK)


def test_what_only_seemed_lost_is_read_again() -> None:
    host = a_host(record("eth0: Link is Up", 1), record(LOST, 2), record("eth0: Link is Down", 3))
    first = look(host)
    look(host, first)  # a look whose result was lost
    third = look(host, first)
    assert (third.value("lost"), third.status) == (0, Status.CRITICAL)


def test_a_programs_fault_is_forgotten_after_an_hour_and_a_lost_card_never() -> None:
    host = a_host(record(FAULT, 1) + record(LOST, 2))
    first = look(host)
    host.clock.advance(3600)
    assert [each["key"] for each in look(host, first).value("events")] == ["79"]
    host.clock.advance(90 * 86400)
    assert [each["key"] for each in look(host, first).value("events")] == ["79"]


def test_how_long_a_programs_fault_is_remembered_can_be_set() -> None:
    host = a_host(record(FAULT, 1))
    first = look(host, forget_after_s=300)
    host.clock.advance(250)
    assert look(host, first, forget_after_s=300).value("events") == []


def test_a_log_that_cannot_be_read_is_unknown_and_forgets_nothing() -> None:
    denied = FileTrouble("/dev/kmsg: Operation not permitted", kind="denied")
    host = a_host(record(FAULT, 1), denied)
    second = look(host, look(host))
    assert second.status is Status.UNKNOWN
    assert "Operation not permitted" in second.summary
    assert [each["key"] for each in second.value("events")] == ["31"]
    assert second.value("log.last") == 1


def test_a_container_cannot_tell_and_a_host_without_nvidia_need_not() -> None:
    missing = FileTrouble("/dev/kmsg does not exist", kind="missing")
    assert "this is a container" in look(a_host(missing)).summary
    bare = look(FakeHost.build({}, kmsg=[missing]))
    assert (bare.status, bare.summary) == (Status.OK, "nothing of NVIDIA's is here")


# --- whose process it was ------------------------------------------------------------------------------------


def test_a_process_that_lives_is_found_by_its_control_group() -> None:
    (event,) = look(a_host(record(FAULT, 1))).value("events")
    assert (event["unit"], event["alive"]) == ("llama-server.service", True)


def test_a_process_that_is_gone_is_found_in_the_journal() -> None:
    host = FakeHost.build(
        {"/sys/module/nvidia/version": "580.95.05\n"},
        commands={("journalctl", ...): journal({"_SYSTEMD_UNIT": "llama-server.service"})},
        kmsg=[record(FAULT, 1)],
    )
    (event,) = look(host).value("events")
    assert (event["unit"], event["alive"]) == ("llama-server.service", False)
    assert "_PID=4242" in host.run.calls[0]


def test_another_process_with_the_same_number_is_not_blamed() -> None:
    later = ENGINE["/proc/4242/stat"].replace("100000", str(int((BOOT_S - 10) * 100)))
    (event,) = look(a_host(record(FAULT, 1), **{"/proc/4242/stat": later})).value("events")
    assert (event["unit"], event["alive"]) == ("", False)


def test_a_process_is_looked_up_once() -> None:
    host = a_host(record(FAULT.replace("4242", "77"), 1))
    first = look(host)
    look(host, first)
    assert len(host.run.calls) == 1


def test_an_engine_that_died_of_it_is_told_once_with_the_code() -> None:
    result = look(a_host(record(FAULT, 1)))
    found = findings(result, Verdict.DEAD)
    assert [each.id for each in found] == ["engine-dead"]
    assert found[0].summary.endswith("; the kernel reported Xid 31 (GPU memory page fault)")


# --- what must never happen ----------------------------------------------------------------------------------

LINES = st.sampled_from(
    [LOST, FAULT, "eth0: Link is Up", "NVRM: Xid (PCI:0000:01:00): 45, pid=1, name=x", *(case["log"] for case in CASES)]
)


@given(st.binary(max_size=400))
def test_no_bytes_make_the_parser_fail(data: bytes) -> None:
    list(kernel_log.events(kernel_log.excerpt(data).records))


@given(st.text(max_size=200), st.integers(0, 2**40), st.integers(0, 2**50))
def test_no_text_makes_the_parser_fail(text: str, number: int, microseconds: int) -> None:
    data = f"4,{number},{microseconds},-;NVRM: Xid {text}\n4,{number + 1},{microseconds},c;{text}\n".encode()
    for event in kernel_log.events(kernel_log.excerpt(data).records):
        assert len(event.tail) <= kernel_log.TAIL_LENGTH
        assert event.tail.isprintable()


@given(st.lists(st.tuples(LINES, st.integers(1, 23)), max_size=8))
def test_what_user_space_writes_never_yields_an_event(lines: list[tuple[str, int]]) -> None:
    data = b"".join(record(text, number, facility=facility) for number, (text, facility) in enumerate(lines))
    assert list(kernel_log.events(kernel_log.excerpt(data).records)) == []


@settings(deadline=None)
@given(st.lists(st.tuples(LINES, st.integers(0, 3), st.sampled_from([0, 1])), min_size=1, max_size=8))
def test_a_gap_is_never_all_well(lines: list[tuple[str, int, int]]) -> None:
    number, log, gaps = 1, b"", 0
    for text, skipped, facility in lines:
        number += skipped
        gaps += skipped
        log += record(text.replace("\n", " "), number, facility=facility)
        number += 1
    result = look(a_host(log), CheckResult("gpu.xid", "host", Status.OK, "", _seen(0), START, 0.0))
    assert result.value("lost") == gaps
    if gaps:
        assert result.status is not Status.OK


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 180), st.integers(1, 60), st.integers(0, 3)), max_size=120))
def test_a_flood_stays_bounded_and_forgets_no_lost_card(codes: list[tuple[int, int, int]]) -> None:
    lines = [f"NVRM: Xid (PCI:0000:0{slot}:00): {code}, pid={pid}, name=x, y" for code, pid, slot in codes]
    log = b"".join(record(text, number) for number, text in enumerate([LOST, *lines]))
    result = look(a_host(log))
    assert len(result.value("events")) <= 40
    assert "79" in {each["key"] for each in result.value("events")}
    assert len(json.dumps(result.value("events"))) < 48 << 10


def test_a_lost_card_outlives_a_hundred_other_codes() -> None:
    lines = [LOST, *(f"NVRM: Xid (PCI:0000:02:00): {code}, x" for code in range(1, 100))]
    events = look(a_host(b"".join(record(text, number) for number, text in enumerate(lines)))).value("events")
    assert len(events) == 40
    assert ("79", "0000:01:00") in {(each["key"], each["gpu"]) for each in events}
    assert "48" in {each["key"] for each in events}, "what is urgent is kept"


def _seen(last: int) -> tuple[Observation, ...]:
    return (Observation("traces", True), Observation("log.boot", START.boot_id), Observation("log.last", last))


def test_a_moment_and_an_observation_of_an_older_release_are_understood() -> None:
    before = Observed(Moment(1.0, 2.0, START.boot_id), (Observation("log.boot", START.boot_id),))
    target = Target("host", CHECK.params(), CHECK.every_s)
    assert frame.run_check(a_host(record(LOST, 5)), CHECK, target, before).status is Status.CRITICAL
