"""A runbook on one sheet of paper, for hands: what it is for, the commands in order, the proof, and what if it fails.

The commands are those of the plan that a run would carry out; nothing is added to them. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from agent.model import Json
from agent.runbook import Runbook
from agent.views import texts
from agent.views.shell_lines import parted


@dataclass(frozen=True, slots=True)
class Line:
    """One line to work off: a command with what is said about it, or only words ("" for what it has not)."""

    command: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One step: its number (0 for none), name, what is special about it, and its lines."""

    number: int
    name: str
    mark: str = ""
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class Sheet:
    """One printed page. `about`, `before` and `after` are labels with their words; `foot` is the last line."""

    name: str
    title: str
    subject: str
    about: tuple[tuple[str, str], ...]
    before: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    after: tuple[Part, ...]
    foot: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where and when a sheet was made: the host, the engine's kind and unit ("" for none), Unix seconds, version."""

    host: str
    kind: str
    unit: str
    at: float
    version: str


def of_runbook(book: Runbook, subject: str, shown: Sequence[Mapping[str, Json]], place: Place, plan: str) -> Sheet:
    """The sheet of a runbook on a subject. shown: its steps with real values; plan: their hash."""
    number = next((index for index, step in enumerate(book.steps, start=1) if not step.rehearsed), 0)
    rehearses = book.rehearsal_every_s is not None
    parts = []
    for index, (step, real) in enumerate(zip(book.steps, shown, strict=True), start=1):
        marks = ["left out in a rehearsal"] if rehearses and not step.rehearsed else []
        marks += ["if it fails, go on"] if step.best_effort else []
        parts.append(Part(index, step.name, "; ".join(marks), tuple(_lines(real.get("lines") or ()))))
    causes = f" for {', '.join(book.findings)}" if book.findings else ""
    again = f"sudo holdfast runbook print {book.id} --subject {subject}"
    return Sheet(
        name=book.id,
        title=book.title,
        subject=subject,
        about=_about(subject, place, f"{book.id}{causes}"),
        before=(
            ("When", " ".join(book.explain.split())),
            ("How", _how(book, subject, number if rehearses else 0)),
        ),
        parts=tuple(parts),
        after=(*_proof(book, subject), _fails(book, subject)),
        foot=f"plan {plan[:12]}; made by Holdfast {place.version}. After a change of the host print it again: {again}",
    )


def of_unbuildable(name: str, subject: str, place: Place, runbooks: Iterable[str]) -> Sheet:
    """The sheet for an engine that is not rebuilt here: what to do instead. runbooks: those that fit it."""
    llama = place.kind == "llama.cpp"
    unit = place.unit or "UNIT"
    why = (
        "Its configuration has no [engine.rebuild], so nobody has said from which source, commit and options."
        if llama
        else f"An engine of kind {place.kind} comes as a finished package or image; it is not compiled on this host."
    )
    look = (
        Line(f"systemctl status {unit}", "how it ended"),
        Line(f"journalctl --boot --lines=60 --unit {unit}", "why: the last lines before it ended"),
        Line(f"systemctl cat {unit}", "what it runs: ExecStart, Environment, User"),
        Line("nvidia-smi", "the driver that is loaded, and the newest CUDA that it serves"),
        Line("holdfast lock show", "the driver that this box must run"),
    )
    driver = (
        Line(words="If the driver changed (dpkg, a reboot) and the engine is as it was, put the driver back."),
        Line(
            "sudo holdfast runbook print restore-driver", "what that would do; then: sudo holdfast run restore-driver"
        ),
        Line(words="A driver newer than the engine's CUDA is fine; an older one is not."),
    )
    engine: tuple[Line, ...]
    if llama:
        engine = (
            Line(words="If its program is broken or too old, put the one back that served last (a copy, a package)."),
            Line("ls -lt --time-style=long-iso /opt/llama.cpp/releases /usr/local/bin", "what lies here"),
            Line(words="Or build it from the commit that served: llama-server --version names it."),
            Line(words="Then say so once, so that the next time it is one command: [engine.rebuild] in holdfast.toml."),
        )
    else:
        engine = (
            Line(words="If the engine changed, install the version that served last, with the same CUDA, from where"),
            Line(words="it came: its virtual environment from saved wheels, its package, or its image by digest."),
            Line(words="Never upgrade it under pressure to cure this: a newer one may need a newer driver."),
        )
    parts = (
        Part(1, "Look what is wrong", lines=look),
        Part(2, "The driver", lines=driver),
        Part(3, "The engine's program", lines=engine),
        Part(
            4, "Start it", lines=(Line(f"sudo systemctl restart {unit}"), Line(f"systemctl is-active {unit}", "active"))
        ),
    )
    proof = Line(f"holdfast check engine.generates --subject {subject}", "OK: a token was generated")
    return Sheet(
        name=name,
        title=f"{subject.removeprefix('engine:')} cannot be rebuilt here: what to do instead",
        subject=subject,
        about=_about(subject, place, f"in place of {name}"),
        before=(("When", f"The engine no longer fits the driver or the cards. {why}"),),
        parts=parts,
        after=(
            Part(0, "Proof", lines=(proof,)),
            Part(
                0,
                "If it fails",
                lines=(Line(words=f"Runbooks that fit this engine: {', '.join(runbooks) or 'none'}."),),
            ),
        ),
        foot=f"made by Holdfast {place.version}",
    )


def of_trouble(name: str, title: str, subject: str, place: Place, why: str) -> Sheet:
    """The sheet in a binder for a runbook whose plan cannot be made now."""
    return Sheet(
        name=name,
        title=title,
        subject=subject,
        about=_about(subject, place, f"runbook {name}"),
        before=(("Now", f"Its plan could not be made: {why}"),),
        parts=(),
        after=(Part(0, "Then", lines=(Line(f"sudo holdfast runbook print {name} --subject {subject}"),)),),
        foot=f"made by Holdfast {place.version}",
    )


def _about(subject: str, place: Place, what: str) -> tuple[tuple[str, str], ...]:
    engine = subject.removeprefix("engine:") if subject.startswith("engine:") else ""
    named = ", ".join(each for each in (place.kind, place.unit) if each)
    made = datetime.fromtimestamp(place.at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    pairs = [("Host", place.host), ("Engine", f"{engine} ({named})" if engine else ""), ("What", what), ("Made", made)]
    return tuple((label, words) for label, words in pairs if words)


def _how(book: Runbook, subject: str, first: int) -> str:
    words = "As root, line by line. "
    if first > 1:
        words += f"Up to step {first - 1} nothing that serves is touched. "
    return f"{words}The same by itself: sudo holdfast run {book.id} --subject {subject}."


def _proof(book: Runbook, subject: str) -> tuple[Part, ...]:
    if book.verify is None:
        return ()
    within = f"OK within {texts.duration(book.verify.within_s)}"
    lines = [Line(f"holdfast check {book.verify.check} --subject {subject}", within)]
    lines += [Line(f"holdfast check {each}", "OK, too") for each in book.verify.also]
    return (Part(0, "Proof", lines=tuple(lines)),)


def _fails(book: Runbook, subject: str) -> Part:
    lines = [Line(words="Stop where it failed and type nothing after it; what is above a failed line has been done.")]
    if book.on_failure:
        lines.append(Line(f"sudo holdfast run {book.on_failure} --subject {subject}", "what is tried next"))
    lines.append(Line("holdfast status", "what is wrong now, why, and what to do next"))
    return Part(0, "If it fails", lines=tuple(lines))


def _lines(lines: Iterable[Json]) -> Iterable[Line]:
    for line in lines:
        command, note = parted(str(line))
        yield Line(command, _plainly(command, note))


def _plainly(command: str, note: str) -> str:
    """A note with its times as people say them; what is not waited for must be so at once, what is named is "it"."""
    note = re.sub(r"(?:wait )?until (.*?), at most 0 s\b", r"must be so: \1", note)
    for word in re.findall(r"[A-Za-z0-9@_.-]+[.]service\b", note):
        note = note.replace(word, "it") if word in command else note
    return re.sub(r"at most (\d+(?:\.\d+)?) s\b", lambda found: f"at most {texts.duration(float(found[1]))}", note)


# --- as text -------------------------------------------------------------------------------------------------


def as_text(sheet: Sheet) -> str:
    """The sheet for a terminal: everything that is no command is a comment, so that all of it may be pasted."""
    lines = [f"# {sheet.name} on {sheet.subject}: {sheet.title}"]
    lines += [f"# {label}: {words}" for label, words in sheet.about]
    for label, words in sheet.before:
        lines += [f"# {line}" for line in texts.labelled(label, words, 110)]
    for part in (*sheet.parts, *sheet.after):
        head = f"{part.number}. {part.name}" if part.number else part.name
        lines += ["", f"# {head}{f' ({part.mark})' if part.mark else ''}"]
        for line in part.lines:
            note = f"    # {line.words}" if line.words else ""
            lines.append(f"{line.command}{note}" if line.command else f"# {line.words}")
    return "\n".join([*lines, "", f"# {sheet.foot}"])


def as_markdown(sheet: Sheet) -> str:
    """The sheet in Markdown, for a wiki."""
    lines = [f"# {sheet.title}", "", *(f"- {label}: {_escaped(words)}" for label, words in sheet.about), ""]
    for label, words in sheet.before:
        lines += [f"**{label}**: {_escaped(words)}", ""]
    for part in (*sheet.parts, *sheet.after):
        lines += [f"## {f'{part.number}. ' if part.number else ''}{_escaped(part.name)}", ""]
        lines += [f"*({_escaped(part.mark)})*", ""] if part.mark else []
        fenced = False
        for line in part.lines:
            if bool(line.command) != fenced:
                lines += ["```sh"] if line.command else ["```", ""]
                fenced = bool(line.command)
            note = f"    # {line.words}" if line.words else ""
            lines += [f"{line.command}{note}"] if line.command else [_escaped(line.words), ""]
        lines += ["```", ""] if fenced else []
    return "\n".join([*lines, f"*{_escaped(sheet.foot)}*"])


def _escaped(text: str) -> str:
    """Words in which Markdown sees nothing but words."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)
