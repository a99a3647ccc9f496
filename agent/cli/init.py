"""`holdfast init`: find out what runs here and write a commented configuration."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli._common import need_root
from agent.cli._result import Result, plain
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import FileTrouble, UsageError

if TYPE_CHECKING:
    from agent.cli._discover import Discovery
    from agent.cli._session import Session

CONFIG_FILE = "/etc/holdfast/holdfast.toml"


class Mode(str, Enum):
    """What Holdfast may do by itself."""

    OBSERVE = "observe"
    ASK = "ask"
    ACT = "act"


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person decided; everything else was found."""

    mode: Mode = Mode.OBSERVE
    pagerduty_key_file: str | None = None
    webhook: str | None = None
    heartbeat: str | None = None


def init(
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take the defaults and the options.")] = False,
    autonomy: Annotated[Mode | None, typer.Option("--autonomy", help="What Holdfast may do by itself.")] = None,
    pagerduty_key_file: Annotated[
        str | None,
        typer.Option("--pagerduty-key-file", metavar="PATH", help="Page PagerDuty with the routing key in this file."),
    ] = None,
    webhook: Annotated[str | None, typer.Option("--webhook", metavar="URL", help="Page this webhook.")] = None,
    heartbeat: Annotated[
        str | None, typer.Option("--heartbeat", metavar="URL", help="Fetch this URL as a sign of life every minute.")
    ] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the configuration and write nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a configuration that has settings; a copy is kept.")
    ] = False,
) -> Result:
    """Find this host's GPU, driver and engines, and write a configuration.

    Reads the machine, asks the engines it finds one or two harmless questions over loopback, and writes
    /etc/holdfast/holdfast.toml. Asks what Holdfast may do by itself when a person is there to answer.
    """
    from agent.cli._discover import discover

    session = current()
    if not print_only:
        need_root(session, "holdfast init")
    _plausible(session, pagerduty_key_file, webhook, heartbeat)
    found = discover(session.host)
    choices = Choices(
        _mode(session, found, autonomy, ask=not yes and not print_only), pagerduty_key_file, webhook, heartbeat
    )
    text = render(found, choices)
    data = {
        "path": CONFIG_FILE,
        "written": not print_only,
        "configuration": text,
        "found": asdict(found),
        "autonomy": choices.mode.value,
    }
    if print_only:
        return Result("init", data, plain(text))
    backup = _write(session, text, force=force)
    return Result("init", {**data, "backup": backup}, plain(_told(found, choices, backup)))


def _plausible(session: Session, key_file: str | None, *urls: str | None) -> None:
    for url in urls:
        if url is not None and not re.match(r"https?://[^/\s]+", url):
            raise UsageError(f"{url!r} is not an address", hint="write https://HOST/PATH")
    if key_file is not None:
        if not key_file.startswith("/"):
            raise UsageError(f"{key_file!r} is not an absolute path", hint="write /etc/holdfast/secrets/pagerduty")
        if not session.host.files.exists(key_file):
            raise UsageError(
                f"there is no {key_file}",
                hint=f"put the routing key there: sudo install -m 640 -g holdfast FILE {key_file}",
            )


def _mode(session: Session, found: Discovery, given: Mode | None, *, ask: bool) -> Mode:
    if given is not None or not (ask and session.interactive):
        return given or Mode.OBSERVE
    engines = ", ".join(f"{e.name} ({e.kind}, {e.unit or 'no unit'})" for e in found.engines) or "none that runs now"
    session.stdout.write(
        f"Engines found: {engines}\n\n"
        "What may Holdfast do by itself?\n"
        "  observe  say what it would do, do nothing\n"
        "  ask      page with the command that approves a repair\n"
        "  act      repair within the runbooks' limits, then page with the result\n"
    )
    return Mode(session.ask("Autonomy", tuple(mode.value for mode in Mode), Mode.OBSERVE.value))


# --- the file -------------------------------------------------------------------------------------------------


def render(found: Discovery, choices: Choices) -> str:
    """The configuration's text. Pure; what it says is valid, and every line that could be wanted is there."""
    gpu = f"{len(found.gpus)} NVIDIA GPU(s): {', '.join(found.gpus)}" if found.gpus else "no NVIDIA GPU"
    lines = [
        "# Holdfast's configuration, written by holdfast init. Every key: man holdfast.",
        "# After a change: holdfast check --config && sudo systemctl reload holdfast",
        f"# This host has {gpu}; driver loaded: {found.loaded or 'none'}, libraries: {found.library or 'none'}.",
        "",
        "[autonomy]",
        "# observe: say what would be done. ask: page with the command that approves. act: do it, within limits.",
        f"mode = {_toml(choices.mode.value)}",
        "# [autonomy.runbook]",
        '# restart-engine = "ask"',
        "",
    ]
    for engine in found.engines:
        lines += _engine(engine)
    if not found.engines:
        lines += _EXAMPLE_ENGINE
    lines += _receivers(choices)
    lines += _heartbeat(choices)
    return "\n".join(lines).rstrip("\n") + "\n"


def _engine(engine: Any) -> list[str]:
    lines = ["[[engine]]", f"name = {_toml(engine.name)}", f"kind = {_toml(engine.kind)}", f"url = {_toml(engine.url)}"]
    if engine.unit:
        lines.append(f"unit = {_toml(engine.unit)}")
    else:
        lines += ["# It runs in no systemd service, so it is watched and never restarted.", '# unit = "NAME.service"']
    own = {key: value for key, value in engine.settings.items() if key not in ("name", "kind", "url", "unit")}
    lines += [f"{key} = {_toml(value)}" for key, value in own.items() if isinstance(value, (str, int, float, bool))]
    if "api_key_file" not in own:
        lines.append('# api_key_file = "/etc/holdfast/secrets/KEY"   # root:holdfast, mode 0640')
    if "load_timeout_s" not in own:
        lines.append("# load_timeout_s = 600   # how long a start may take before loading counts as a fault")
    if engine.rebuild:
        from agent.cli._rebuildable import lines as rebuild_lines

        lines += rebuild_lines(engine.rebuild)
    return [*lines, ""]


_EXAMPLE_ENGINE = [
    "# No engine was found running. One table for each:",
    "# [[engine]]",
    '# name = "chat"',
    '# kind = "llama.cpp"',
    '# url = "http://127.0.0.1:8080"',
    '# unit = "llama-server.service"',
    "",
]


def _receivers(choices: Choices) -> list[str]:
    lines: list[str] = []
    if choices.pagerduty_key_file:
        lines += [
            "[[receiver]]",
            'name = "pagerduty"',
            'kind = "pagerduty"',
            f"routing_key_file = {_toml(choices.pagerduty_key_file)}",
            "",
        ]
    if choices.webhook:
        lines += ["[[receiver]]", 'name = "webhook"', 'kind = "webhook"', f"url = {_toml(choices.webhook)}", ""]
    if not lines:
        lines = [
            "# Nobody is paged until there is a receiver.",
            "# [[receiver]]",
            '# name = "primary"',
            '# kind = "pagerduty"',
            '# routing_key_file = "/etc/holdfast/secrets/pagerduty"   # root:holdfast, mode 0640',
            "",
        ]
    return lines


def _heartbeat(choices: Choices) -> list[str]:
    if choices.heartbeat:
        return ["[heartbeat]", f"url = {_toml(choices.heartbeat)}", ""]
    return [
        "# A sign of life, so that somebody outside notices when this host goes silent.",
        "# [heartbeat]",
        '# url = "https://hc-ping.com/UUID"',
    ]


def _toml(value: Any) -> str:
    """A value as TOML: a JSON scalar is one, once DEL is escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- writing --------------------------------------------------------------------------------------------------


def _write(session: Session, text: str, *, force: bool) -> str | None:
    """Write the configuration and return where the copy of the old one is, None when there was none."""
    files = session.host.files
    try:
        old = files.read_text(CONFIG_FILE)
    except FileTrouble as error:
        if error.kind != "missing":
            raise
        old = None
    if old is not None and has_settings(old) and old != text and not force:
        raise UsageError(
            f"{CONFIG_FILE} already has settings",
            hint="compare with holdfast init --print; replace it with sudo holdfast init --force (a copy is kept)",
            where=CONFIG_FILE,
            code="configured",
        )
    group = _group(session)
    backup = None
    if old is not None and old != text:
        backup = f"{CONFIG_FILE}.{int(session.host.clock.now().wall)}.old"
        files.write_atomic(backup, old, 0o640, group=group)
    files.write_atomic(CONFIG_FILE, text, 0o640, group=group)
    return backup


def _group(session: Session) -> str | None:
    """The daemon's group, None where the package has not made it."""
    try:
        lines = session.host.files.read_text("/etc/group").splitlines()
    except FileTrouble:
        return None
    return "holdfast" if any(line.startswith("holdfast:") for line in lines) else None


def has_settings(text: str) -> bool:
    """Whether a configuration says anything beyond comments."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.removeprefix("\ufeff").splitlines())


def _told(found: Discovery, choices: Choices, backup: str | None) -> str:
    lines = [f"wrote    {CONFIG_FILE}" + (f" (the old one is {backup})" if backup else "")]
    lines.append(f"GPU      {len(found.gpus) or 'none'}; driver {found.loaded or 'not loaded'}")
    lines += [
        f"engine   {engine.name}: {engine.kind} at {engine.url}, {engine.unit or 'in no unit'}"
        for engine in found.engines
    ]
    lines += [
        f"rebuild  {engine.name}: commit {engine.rebuild['commit'][:12]} of {engine.rebuild['source']}"
        for engine in found.engines
        if "commit" in engine.rebuild
    ]
    if not found.engines:
        lines.append("engine   none found: start it and run this again, or write its table by hand")
    lines.append(f"mode     {choices.mode.value}")
    lines += [f"note     {note}" for note in found.notes]
    lines += ["next     sudo systemctl reload-or-restart holdfast"]
    lines.append(
        "         holdfast pager test"
        if choices.pagerduty_key_file or choices.webhook
        else "         add a [[receiver]]: nobody is paged yet"
    )
    if found.loaded:
        lines.append("         sudo holdfast lock write")
    return "\n".join([*lines, "         holdfast doctor"])


VERB = Verb(commands=(init,))
