from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import Field

from agent import plugin, runbook, template
from agent.errors import ConfigurationError, Mistake
from agent.host import Host
from agent.model import Risk
from agent.plugin import Action, Parameters, Plan, Target
from agent.runbook import LOCAL, SHIPPED, Catalogue, Runbook, Runbooks
from agent.runbook_schema import parse_duration
from tests.support.fake_host import FakeFiles, File, Link


class Params(Parameters):
    engine: str
    times: int = Field(default=1, ge=1)


def nothing(host: Host, target: Target, params: Params) -> Plan:
    return Plan(())


def action(identifier: str, risk: Risk) -> Action:
    return Action(id=identifier, params=Params, risk=risk, plan=nothing)


KNOWN = Catalogue(
    actions={"unit.look": action("unit.look", Risk.NONE), "unit.restart": action("unit.restart", Risk.SERVICE)},
    checks=frozenset({"engine.generates"}),
    findings=frozenset({"engine-dead", "engine-wedged"}),
    engines=frozenset({"llama.cpp", "vllm"}),
)
GOOD = """
id: restart
title: Restart
explain: It restarts.
for: [engine-dead]
steps:
  - {name: Look, use: unit.look, with: {engine: "{{ engine.name }}"}, timeout: "1m30s", best_effort: true}
  - {name: Restart, use: unit.restart, with: {engine: chat, times: 2}, spans_reboot: true}
verify: {check: engine.generates, within: "10m"}
"""


def load(files: Mapping[str, object], owner: int | None = None) -> Runbooks:
    return runbook.load(FakeFiles(files), owner=owner, known=KNOWN)  # type: ignore[arg-type]


def good(**replaced: str) -> Runbook:
    text = GOOD
    for old, new in replaced.items():
        text = text.replace(old, new)
    mistakes: list[Mistake] = []
    found = runbook.parse(text, "r.yaml", KNOWN, mistakes)
    assert found is not None, mistakes
    return found


def wrong(text: str) -> list[str]:
    mistakes: list[Mistake] = []
    assert runbook.parse(text, "r.yaml", KNOWN, mistakes) is None
    assert mistakes
    assert all(mistake.file == "r.yaml" for mistake in mistakes)
    return [f"{mistake.path}: {mistake.wrong}" for mistake in mistakes]


def test_a_good_runbook_is_understood() -> None:
    book = good()
    assert book.findings == ("engine-dead",)
    assert book.steps[0].timeout_s == 90
    assert book.steps[0].best_effort
    assert book.steps[1].spans_reboot
    assert book.verify is not None
    assert book.verify.within_s == 600
    assert (book.limits.cooldown_s, book.limits.max_runs, book.limits.within_s) == (300, 3, 21600)
    assert book.on_failure == ""
    assert book.needs_engine


def test_a_runbook_is_as_risky_as_its_riskiest_action() -> None:
    assert good().risk is Risk.SERVICE


def test_the_hash_covers_what_it_does_and_not_how_it_is_written() -> None:
    assert good().hash == good(**{"title: Restart\n": "title:    Restart   # a comment\n"}).hash
    assert good().hash != good(**{"times: 2": "times: 3"}).hash


def test_every_mistake_is_told_at_once() -> None:
    found = wrong(
        GOOD.replace("for: [engine-dead]", "for: [engine-ded]")
        .replace("use: unit.look", "use: unit.lock")
        .replace("times: 2", "times: none, tymes: 3")
        .replace("check: engine.generates", "check: engine.generate")
    )
    assert len(found) == 5
    assert any("for[0]" in each and "engine-dead" in each for each in found)
    assert any("steps[0].use" in each for each in found)
    assert any("steps[1].with.times" in each for each in found)
    assert any("steps[1].with.tymes: unknown parameter" in each for each in found)
    assert any("verify.check" in each for each in found)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title: Restart", "titel: Restart", "titel: unknown key"),
        ("id: restart", "id: Restart Engine", "id:"),
        ('timeout: "1m30s"', "timeout: 90", "timeout"),
        ('timeout: "1m30s"', 'timeout: "0s"', "timeout"),
        ('within: "10m"', 'within: "soon"', "verify.within"),
        ('verify: {check: engine.generates, within: "10m"}', "on_failure: page", "on_failure"),
        ("with: {engine: chat, times: 2}", "with: {times: 2}", "steps[1].with.engine: missing"),
        ("with: {engine: chat, times: 2}", "shell: reboot", "shell"),
        ("for: [engine-dead]", "for: [engine-dead]\nfor: [engine-wedged]", "set twice"),
        ("steps:", "inputs: {incident: {type: string}}\nsteps:", "reserved"),
        ("steps:", "inputs: {n: {type: integer, default: many}}\nsteps:", "inputs.n"),
        ("steps:", "inputs: {n: {type: string, pattern: '['}}\nsteps:", "regular expression"),
        ("explain: It restarts.", "explain: [", "not valid YAML"),
        ("explain: It restarts.", "explain: !!python/object/apply:os.system [id]", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, said: str) -> None:
    assert any(said in each for each in wrong(GOOD.replace(old, new)))


@pytest.mark.parametrize(
    "text",
    [
        "{{ engine.name",
        "{{ finding.summary }}",
        "{% for x in engine %}{% endfor %}",
        "{{ engine.name.upper() }}",
        "{{ engine.name | upper }}",
        "{{ 1 + 1 }}",
        "{{ engine.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ inputs.nothing }}",
        "{# hidden #}",
        "{{ engine.name if engine.gpu else 'x' }}",
        "{{ lipsum }}",
    ],
)
def test_a_template_only_looks_something_up(text: str) -> None:
    found = wrong(GOOD.replace("{{ engine.name }}", text))
    assert any(each.startswith("steps[0].with.engine: ") for each in found)


@pytest.mark.parametrize("text", ["", "[]", "x", "1", "null", "- a", "a: &a [*a]", "\x00", "[" * 5000])
def test_something_else_than_a_runbook_is_a_mistake(text: str) -> None:
    wrong(text)


def test_a_missing_directory_holds_no_runbooks() -> None:
    assert load({}).by_id == {}


def test_a_local_runbook_replaces_the_shipped_one() -> None:
    books = load({f"{SHIPPED}/a.yaml": GOOD, f"{LOCAL}/b.yaml": GOOD.replace("It restarts.", "Ours.")})
    assert [book.explain for book in books.by_id.values()] == ["Ours."]


def test_the_same_id_twice_in_one_directory_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match="already the id"):
        load({f"{SHIPPED}/a.yaml": GOOD, f"{SHIPPED}/b.yaml": GOOD})


def test_all_files_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({f"{SHIPPED}/a.yaml": "x", f"{LOCAL}/b.yaml": "y"})
    assert {mistake.file for mistake in caught.value.mistakes} == {f"{SHIPPED}/a.yaml", f"{LOCAL}/b.yaml"}


def test_the_more_specific_runbook_wins() -> None:
    special = GOOD.replace("id: restart", "id: restart-vllm\nengines: [vllm]")
    books = load({f"{SHIPPED}/a.yaml": GOOD, f"{SHIPPED}/b.yaml": special})

    def fitting(kind: str | None) -> str:
        found = books.runbook_for("engine-dead", kind)
        assert found is not None
        return found.id

    assert (fitting("vllm"), fitting("llama.cpp"), fitting(None)) == ("restart-vllm", "restart", "restart")
    assert books.runbook_for("engine-wedged", "vllm") is None


@pytest.mark.parametrize("extra", ["", "\nengines: [vllm]"])
def test_two_equally_specific_runbooks_are_a_mistake(extra: str) -> None:
    one, two = GOOD.replace("id: restart", f"id: one{extra}"), GOOD.replace("id: restart", f"id: two{extra}")
    with pytest.raises(ConfigurationError, match="as specific"):
        load({f"{SHIPPED}/a.yaml": one, f"{SHIPPED}/b.yaml": two})


def test_a_successor_must_exist_and_lead_to_an_end() -> None:
    with pytest.raises(ConfigurationError, match="unknown runbook 'nobody'"):
        load({f"{SHIPPED}/a.yaml": GOOD + "on_failure: {run: nobody}\n"})
    one = GOOD.replace("id: restart", "id: one") + "on_failure: {run: two}\n"
    two = GOOD.replace("id: restart", "id: two").replace("for: [engine-dead]\n", "") + "on_failure: {run: one}\n"
    with pytest.raises(ConfigurationError, match="a circle never ends"):
        load({f"{SHIPPED}/a.yaml": one, f"{SHIPPED}/b.yaml": two})


@pytest.mark.parametrize("entry", [File(GOOD, mode=0o664), File(GOOD, mode=0o646), File(GOOD, uid=1000)])
def test_a_file_that_others_can_write_is_refused_by_the_runner_only(entry: File) -> None:
    assert load({f"{SHIPPED}/a.yaml": entry}).by_id
    with pytest.raises(ConfigurationError, match="others than root can write"):
        load({f"{SHIPPED}/a.yaml": entry}, owner=0)


def test_a_link_is_refused_by_the_runner() -> None:
    with pytest.raises(ConfigurationError, match="symbolic link"):
        load({f"{SHIPPED}/a.yaml": Link("/home/x/a.yaml"), "/home/x/a.yaml": GOOD}, owner=0)


DURATION = "{type: duration, default: 5m}"
CHOICE = "{type: string, choices: [a, b], default: a}"


def test_inputs_are_typed() -> None:
    inputs = f"inputs: {{n: {{type: integer}}, w: {DURATION}, s: {CHOICE}}}"
    book = good(**{"steps:": f"{inputs}\nsteps:"})
    assert book.resolved_inputs({"n": 3}) == {"n": 3, "w": 300, "s": "a"}
    for given in ({}, {"n": "3"}, {"n": 3, "s": "c"}, {"n": 3, "x": 1}, {"n": 3, "w": 5}):
        with pytest.raises(ConfigurationError):
            book.resolved_inputs(given)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("0.5s", 0.5)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", 5, "m", "5 m", "-5m", "5x", None, "1e3s"])
def test_other_durations_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        parse_duration(text)


def test_a_template_that_is_the_whole_value_keeps_its_type() -> None:
    known = {"inputs": {"n": 3, "flags": ["-a", "-b"]}, "engine": {"name": "chat"}}
    value = {"n": "{{ inputs.n }}", "flags": ["{{ inputs.flags }}"], "text": "for {{ engine.name }} {{ inputs.n }}"}
    assert template.resolve(value, known, "f", "p") == {"n": 3, "flags": [["-a", "-b"]], "text": "for chat 3"}


@pytest.mark.parametrize("text", ["{{ lock.version }}", "{{ engine.nothing }}", "a {{ engine.nothing }}", "{{ host }}"])
def test_what_is_not_defined_is_an_error_and_never_empty(text: str) -> None:
    with pytest.raises(ConfigurationError):
        template.resolve(text, {"engine": {"name": "chat"}}, "f", "p")


def test_a_value_that_looks_like_a_template_is_not_looked_up_again() -> None:
    assert template.resolve("{{ inputs.s }}", {"inputs": {"s": "{{ engine.name }}"}}, "f", "p") == "{{ engine.name }}"


def test_the_shipped_runbooks_are_valid() -> None:
    folder = Path(__file__).resolve().parents[2] / "runbooks"
    files = {f"{SHIPPED}/{path.name}": path.read_text() for path in folder.glob("*.yaml")}
    books = runbook.load(FakeFiles(files))
    assert {"engine-dead", "engine-wedged"} <= set(plugin.rules())
    for finding in ("engine-dead", "engine-wedged"):
        found = books.runbook_for(finding, "llama.cpp")
        assert found is not None
        assert found.id == "restart-engine"
