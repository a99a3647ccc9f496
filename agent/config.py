"""The configuration: `holdfast.toml` and `conf.d/*.toml`, merged and validated; every mistake at once.

Tables merge, arrays of tables append, and a value set in two files is a mistake. Each plug-in validates its own
table: `[check."host.disk"]`, `[[engine]]` by kind, `[[receiver]]` by kind.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from agent import plugin
from agent.errors import ConfigurationError, FileTrouble, Mistake
from agent.host import Files, ownership
from agent.host.process import redact_argv
from agent.model import Autonomy
from agent.plugin import Check, EngineSettings, Parameters, ReceiverSettings, Target

if sys.version_info >= (3, 11):
    import tomllib
else:  # Ubuntu 22.04
    import tomli as tomllib

CONFIG_FILE = "/etc/holdfast/holdfast.toml"
CONFIG_DIRECTORY = "/etc/holdfast/conf.d"


class AutonomySettings(Parameters):
    """What Holdfast may do by itself."""

    mode: Autonomy = Autonomy.OBSERVE
    """observe: say what would be done. ask: page with the command that approves. act: do it, within limits."""
    runbook: dict[str, Autonomy] = Field(default_factory=dict)
    """The same for single runbooks."""


class DaemonSettings(Parameters):
    """The daemon itself."""

    metrics_listen: str = Field(
        default="127.0.0.1:9835", pattern=r"^(127\.\d+\.\d+\.\d+|\[::1\]|localhost):\d{1,5}$|^off$"
    )
    """Where /metrics is served; loopback only, or "off"."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What goes to the journal."""


class PagerSettings(Parameters):
    """How alerts behave, whatever receives them."""

    page_after_s: float = Field(default=60.0, ge=0)
    """A fault that a run may cure becomes critical when tokens are not proven within this time."""
    unknown_after_s: float = Field(default=900.0, ge=0)
    """UNKNOWN is told once, at low urgency, after this time."""
    fallback_after_s: float = Field(default=120.0, ge=0)
    """The fallback receivers are used when nothing else has accepted an alert for this time."""


class HeartbeatSettings(Parameters):
    """The dead man's switch: silence is noticed by someone outside this host."""

    url: str = Field(pattern=r"^https?://.+")
    """Fetched after each complete round."""
    every_s: float = Field(default=60.0, ge=10)
    """How often."""


class RehearsalSettings(Parameters):
    """When Holdfast rehearses by itself what it would do in an emergency, beside what serves."""

    quiet: str = Field(default="02:00-05:00", pattern=r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$")
    """The quiet hours, in this host's local time; they may go past midnight."""
    by_itself: bool = True
    """Whether it does so by itself; by hand, `holdfast rehearse` always works."""


@dataclass(frozen=True)
class CheckSettings:
    """One check as configured: its own parameters, and what the frame needs."""

    enabled: bool
    every_s: float
    params: Parameters


@dataclass(frozen=True)
class Config:
    """A whole, valid configuration. `digest` changes when any file changed."""

    autonomy: AutonomySettings = field(default_factory=AutonomySettings)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    pager: PagerSettings = field(default_factory=PagerSettings)
    heartbeat: HeartbeatSettings | None = None
    rehearsal: RehearsalSettings = field(default_factory=RehearsalSettings)
    engines: tuple[EngineSettings, ...] = ()
    receivers: tuple[ReceiverSettings, ...] = ()
    checks: Mapping[str, CheckSettings] = field(default_factory=dict)
    digest: str = ""

    @property
    def configured(self) -> bool:
        """Whether a person has told Holdfast what to watch. Unconfigured it idles: no page, no hold, no veto."""
        return bool(self.engines or self.receivers)

    def engine(self, name: str) -> EngineSettings | None:
        """The settings of one engine."""
        return next((engine for engine in self.engines if engine.name == name), None)

    def autonomy_for(self, runbook: str) -> Autonomy:
        """What may be done by itself with one runbook."""
        return self.autonomy.runbook.get(runbook, self.autonomy.mode)

    def target(self, check: Check, subject: str) -> Target | None:
        """The target of one check on one subject, or None where the check does not apply."""
        settings = self.checks[check.id]
        if check.scope == "host":
            target = Target(subject, settings.params, settings.every_s)
            return target if subject == "host" and check.applies(target) else None
        engine = self.engine(subject.removeprefix("engine:"))
        if engine is None or not subject.startswith("engine:"):
            return None
        kind = plugin.engines()[engine.kind]
        own_every_s = getattr(engine, check.own_every_s, None) if check.own_every_s else None
        target = Target(subject, settings.params, own_every_s or settings.every_s, kind, engine)
        return target if check.applies(target) else None

    def subjects(self) -> Iterator[str]:
        """Every subject there is."""
        yield "host"
        for engine in self.engines:
            yield f"engine:{engine.name}"

    def targets(self) -> Iterator[tuple[Check, Target]]:
        """Every enabled check on every subject it applies to."""
        for check in plugin.checks().values():
            if not self.checks[check.id].enabled:
                continue
            for subject in self.subjects():
                target = self.target(check, subject)
                if target is not None:
                    yield check, target


def load(
    files: Files, *, path: str = CONFIG_FILE, directory: str = CONFIG_DIRECTORY, owner: int | None = None
) -> Config:
    """Read, merge and validate all files. A missing file is an empty one.

    owner: refuse files that anyone but this uid (and root) can write, as the runner does.
    Raises ConfigurationError with every mistake in every file.
    """
    mistakes: list[Mistake] = []
    merged = _Merged(mistakes)
    digest = hashlib.sha256()
    for name in _file_names(files, path, directory, mistakes):
        text = _read(files, name, mistakes, owner)
        if text is None:
            continue
        digest.update(name.encode() + b"\0" + text.encode() + b"\0")
        try:
            merged.add(tomllib.loads(text.removeprefix("\ufeff")), name)
        except tomllib.TOMLDecodeError as error:
            mistakes.append(Mistake(name, "", f"not valid TOML: {error}"))
    config = _validate(merged, mistakes, digest.hexdigest(), path)
    if mistakes:
        raise ConfigurationError(mistakes, hint="correct these and run: holdfast check --config")
    return config


def _file_names(files: Files, path: str, directory: str, mistakes: list[Mistake]) -> list[str]:
    names: list[str] = []
    for place in (path, directory):
        try:
            if place == path:
                names += [path] if files.exists(path) else []
            elif files.exists(directory):
                names += [f"{directory}/{name}" for name in files.listdir(directory) if name.endswith(".toml")]
        except FileTrouble as error:  # a directory on the way that we may not enter
            mistakes.append(Mistake(place, "", error.message))
    return names


def _read(files: Files, name: str, mistakes: list[Mistake], owner: int | None) -> str | None:
    try:
        wrong = ownership.mistake(files, name, owner) if owner is not None else None
        if wrong is None:
            return files.read_text(name)
    except FileTrouble as error:
        wrong = Mistake(name, "", error.message)
    mistakes.append(wrong)
    return None


class _Merged:
    """All files as one document that remembers which file each value came from."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.document: dict[str, Any] = {}
        self._origin: dict[tuple[str | int, ...], str] = {}
        self._mistakes = mistakes

    def add(self, document: dict[str, Any], name: str) -> None:
        self._merge(self.document, document, (), name)

    def origin(self, path: tuple[str | int, ...], default: str) -> str:
        """The file that the value at `path`, or the nearest table above it, came from."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._origin:
                return self._origin[path[:end]]
        return default

    def _merge(self, into: dict[str, Any], new: dict[str, Any], path: tuple[str | int, ...], name: str) -> None:
        for key, value in new.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                self._merge(into[key], value, here, name)
            elif isinstance(value, list) and isinstance(into.get(key), list):
                for item in value:
                    self._mark(item, (*here, len(into[key])), name)
                    into[key].append(item)
            elif key in into:
                self._mistakes.append(Mistake(name, _spell(here), f"is already set in {self.origin(here, '')}"))
            else:
                into[key] = value
                self._mark(value, here, name)

    def _mark(self, value: Any, path: tuple[str | int, ...], name: str) -> None:
        self._origin[path] = name
        items: Iterator[tuple[str | int, Any]] = iter(())
        if isinstance(value, dict):
            items = iter(value.items())
        elif isinstance(value, list):
            items = iter(enumerate(value))
        for key, item in items:
            self._mark(item, (*path, key), name)


_TABLES: dict[str, type[BaseModel]] = {
    "autonomy": AutonomySettings,
    "daemon": DaemonSettings,
    "pager": PagerSettings,
    "heartbeat": HeartbeatSettings,
    "rehearsal": RehearsalSettings,
}
_KNOWN = (*_TABLES, "engine", "receiver", "check")


def _validate(merged: _Merged, mistakes: list[Mistake], digest: str, path: str) -> Config:
    reader = _Reader(merged, mistakes, path)
    for key in merged.document:
        if key not in _KNOWN:
            reader.wrong((key,), "unknown table" + _near(key, _KNOWN), ", ".join(_KNOWN))
    tables = {name: reader.table(name, model) for name, model in _TABLES.items()}
    engines = reader.plugins("engine", {kind: engine.settings for kind, engine in plugin.engines().items()})
    receivers = reader.plugins("receiver", {kind: receiver.settings for kind, receiver in plugin.receivers().items()})
    checks = reader.checks()
    _one_unit_each(reader, engines)
    return Config(
        autonomy=tables["autonomy"] or AutonomySettings(),
        daemon=tables["daemon"] or DaemonSettings(),
        pager=tables["pager"] or PagerSettings(),
        heartbeat=tables["heartbeat"] or None,
        rehearsal=tables["rehearsal"] or RehearsalSettings(),
        engines=engines,
        receivers=receivers,
        checks=checks,
        digest=digest,
    )


def _one_unit_each(reader: _Reader, engines: tuple[EngineSettings, ...]) -> None:
    """Two engines in one unit would be restarted behind each other's back: locks and budgets are per engine."""
    owners: dict[str, str] = {}
    for engine in engines:
        first = owners.setdefault(engine.unit or "", engine.name)
        if engine.unit is not None and first != engine.name:
            reader.wrong(
                reader.place("engine", engine.name, "unit"), f"{engine.unit!r} is already the unit of {first!r}"
            )


class _Reader:
    """Validates parts of the merged document and collects every mistake with its file and path."""

    def __init__(self, merged: _Merged, mistakes: list[Mistake], default: str) -> None:
        self._merged = merged
        self._mistakes = mistakes
        self._default = default

    def wrong(self, path: tuple[str | int, ...], wrong: str, allowed: str = "") -> None:
        self._mistakes.append(Mistake(self._merged.origin(path, self._default), _spell(path), wrong, allowed))

    def place(self, table: str, name: str, key: str) -> tuple[str | int, ...]:
        """Where a key of the `[[table]]` with this name stands."""
        named = [each.get("name") if isinstance(each, dict) else None for each in self._merged.document.get(table, [])]
        return (table, named.index(name), key)

    def table(self, name: str, model: type[BaseModel]) -> Any:
        value = self._merged.document.get(name)
        return None if value is None else self._model(model, value, (name,))

    def plugins(self, name: str, models: Mapping[str, type[BaseModel]]) -> tuple[Any, ...]:
        """Every `[[name]]` table, validated by the plug-in of its kind; names must be unique."""
        tables = self._merged.document.get(name, [])
        if not isinstance(tables, list):
            self.wrong((name,), f"must be a list of tables: write [[{name}]]")
            return ()
        found: list[Any] = []
        names: dict[str, int] = {}
        for index, value in enumerate(tables):
            here = (name, index)
            kind = value.get("kind") if isinstance(value, dict) else None
            if not isinstance(kind, str) or kind not in models:
                self.wrong(
                    (*here, "kind"),
                    "missing" if kind is None else f"unknown kind {kind!r}" + _near(kind, models),
                    ", ".join(models),
                )
                continue
            settings = self._model(models[kind], value, here)
            if isinstance(value.get("name"), str) and value["name"] in names:
                self.wrong((*here, "name"), f"{value['name']!r} is already the name of {name}[{names[value['name']]}]")
            names.setdefault(str(value.get("name")), index)
            if settings is not None:
                found.append(settings)
        return tuple(found)

    def checks(self) -> dict[str, CheckSettings]:
        """Every check's settings; `every` and `enabled` belong to the frame, the rest to the check."""
        tables = self._merged.document.get("check", {})
        known = plugin.checks()
        settings: dict[str, CheckSettings] = {}
        if not isinstance(tables, dict):
            self.wrong(("check",), 'must be tables by id: write [check."host.disk"]')
            tables = {}
        for identifier in tables:
            if identifier not in known:
                self.wrong(("check", identifier), "unknown check" + _near(identifier, known), ", ".join(known))
        for identifier, check in known.items():
            given = tables.get(identifier, {})
            if not isinstance(given, dict):
                self.wrong(("check", identifier), "must be a table")
                given = {}
            own = {key: value for key, value in given.items() if key not in ("every_s", "enabled")}
            frame = self._model(
                _CheckFrame, {k: given[k] for k in ("every_s", "enabled") if k in given}, ("check", identifier)
            )
            params = self._model(check.params, own, ("check", identifier))
            if frame is not None and params is not None:
                settings[identifier] = CheckSettings(frame.enabled, frame.every_s or check.every_s, params)
        return settings

    def _model(self, model: type[BaseModel], value: Any, path: tuple[str | int, ...]) -> Any:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for each in error.errors():
                self._say(model, each, path)
            return None

    def _say(self, model: type[BaseModel], each: Any, path: tuple[str | int, ...]) -> None:
        here = (*path, *each["loc"])
        context = each.get("ctx", {})
        allowed = str(context.get("expected", "") or context.get("pattern", ""))
        if each["type"] == "extra_forbidden":
            fields = sorted(model.model_fields)
            self.wrong(here, "unknown key" + _near(str(each["loc"][-1]), fields), ", ".join(fields))
        elif each["type"] == "missing":
            self.wrong(here, "missing")
        else:
            self.wrong(here, f"{_shown(path, each['input'])}: {each['msg']}", "" if allowed in each["msg"] else allowed)


class _CheckFrame(Parameters):
    """What the frame, not the check, reads of a check's table."""

    every_s: float | None = Field(default=None, gt=0, le=86400)
    enabled: bool = True


_HUSH = ("receiver", "heartbeat")
"""Tables whose texts are not repeated in a mistake: a webhook's address is its secret, and mistakes are paged."""
_SHOWN_LENGTH = 80


def _shown(path: tuple[str | int, ...], value: object) -> str:
    """A wrong value as it may be told: no secret, no page-long text."""
    if not isinstance(value, (str, int, float, bool)) or (isinstance(value, str) and path[0] in _HUSH):
        return f"{type(value).__name__} given"
    return repr(" ".join(redact_argv(str(value).split(" ")))[:_SHOWN_LENGTH] if isinstance(value, str) else value)


def _near(word: object, known: Mapping[str, Any] | tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _spell(path: tuple[str | int, ...]) -> str:
    words = ""
    for part in path:
        if isinstance(part, int):
            words += f"[{part}]"
        else:
            quoted = f'"{part}"' if "." in part else part
            words += f".{quoted}" if words else quoted
    return words
