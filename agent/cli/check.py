"""`holdfast check`: run checks now, without the daemon; each is a Nagios plug-in too."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli._common import configuration, unknown
from agent.cli._result import Result, plain
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import ConfigurationError, Mistake, UsageError


def _ids(incomplete: str) -> list[str]:
    from agent import plugin

    return [identifier for identifier in plugin.checks() if identifier.startswith(incomplete)]


def check(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Checks to run; all of them without one.", autocompletion=_ids),
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="Only this subject: host, engine:NAME.")] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="Only this engine; short for --subject engine:NAME.")
    ] = None,
    config: Annotated[bool, typer.Option("--config", help="Check configuration and runbooks instead.")] = False,
) -> Result:
    """Run checks now, without the daemon.

    One check prints one Nagios line, several a table; the exit code is 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
    With --config every mistake in every file is reported, and the exit code is 78 when there is one.
    """
    if config:
        if ids or subject or engine:
            raise UsageError("--config checks the files, not the machine", hint="holdfast check --config")
        return _configuration()
    if subject and engine:
        raise UsageError("--subject and --engine exclude each other", hint="holdfast check --engine NAME")
    return _run(list(ids or ()), f"engine:{engine}" if engine else subject)


def _run(ids: list[str], subject: str | None) -> Result:
    from agent import plugin
    from agent.cli._checks import answer, run_now
    from agent.model import Status

    known = plugin.checks()
    for identifier in ids:
        if identifier not in known:
            unknown("check", identifier, known)
    settings = configuration()
    if subject is not None and subject not in tuple(settings.subjects()):
        unknown("subject", subject, settings.subjects())
    # A check asked for by name runs although it is disabled: the person wants its answer now.
    candidates = [(known[i], i) for i in ids] or [(c, c.id) for c in known.values() if settings.checks[c.id].enabled]
    subjects = [subject] if subject else list(settings.subjects())
    targets = [(c, t) for c, _ in candidates for s in subjects if (t := settings.target(c, s)) is not None]
    if not targets:
        words = "nothing here that this applies to" + (
            "" if settings.engines else "; no engine is configured (sudo holdfast init)"
        )
        return Result(
            "check",
            {"status": Status.UNKNOWN.value, "results": []},
            plain(f"{' '.join(ids) or 'check'} UNKNOWN - {words}"),
            exit_code=Status.UNKNOWN.exit_code,
        )
    return answer(run_now(targets))


def _configuration() -> Result:
    from agent import config, runbook

    files = current().host.files
    mistakes: list[Mistake] = []
    counts = {"engines": 0, "receivers": 0, "runbooks": 0}
    try:
        settings = config.load(files)
        counts["engines"], counts["receivers"] = len(settings.engines), len(settings.receivers)
    except ConfigurationError as error:
        mistakes += error.mistakes
    try:
        counts["runbooks"] = len(runbook.load(files).by_id)
    except ConfigurationError as error:
        mistakes += error.mistakes
    if mistakes:
        raise ConfigurationError(mistakes, hint="correct these and run again: holdfast check --config")
    words = ", ".join(f"{number} {name}" for name, number in counts.items())
    text = f"OK - no mistake in {words}"
    return Result("configuration", {"valid": True, **counts}, plain(text))


VERB = Verb(commands=(check,))
