"""Pages that the daemon itself has failed: what `holdfast-failed@.service` runs (`OnFailure=` of the daemon).

It uses no store and trusts no more of the configuration than it needs: a daemon that failed because of its
configuration must still be told of, so every receiver whose own table is valid is used.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from agent import config, plugin
from agent.errors import ConfigurationError, FileTrouble
from agent.host import Files, Host
from agent.host.real import real_host
from agent.pager import last_words
from agent.plugin import ReceiverSettings

if sys.version_info >= (3, 11):
    import tomllib
else:  # Ubuntu 22.04
    import tomli as tomllib

_VARIABLES = ("MONITOR_SERVICE_RESULT", "MONITOR_EXIT_CODE", "MONITOR_EXIT_STATUS")
"""What systemd 251 and later tell the unit named in OnFailure= (systemd.exec(5)); before, nothing."""


def main(argv: list[str] | None = None) -> int:
    """Tell everyone. Returns 0 when at least one receiver took it, else 1."""
    arguments = sys.argv[1:] if argv is None else argv
    environment = dict(os.environ)
    unit = arguments[0] if arguments else environment.get("MONITOR_UNIT", "holdfast.service")
    return run(real_host(), unit, environment)


def run(host: Host, unit: str, environment: Mapping[str, str]) -> int:
    """Tell everyone that `unit` failed, in the words of the environment that systemd gave."""
    receivers = usable_receivers(host.files)
    if not receivers:
        _say("<2>", f"{unit} failed, and there is no usable receiver to tell it to")
        return 1
    told: list[str] = []
    for name in last_words.deliver(host, receivers, last_words.failed(host, unit, why(unit, environment))):
        told.append(name)
        _say("<5>", f"{unit} failed; told {name}")
        if unit == last_words.DAEMON:
            _remember(host, told)
    missed = [each.name for each in receivers if each.name not in told]
    if missed:
        _say("<3>" if told else "<2>", f"{unit} failed; could not tell {', '.join(missed)}")
    return 0 if told else 1


def why(unit: str, environment: Mapping[str, str]) -> str:
    """Systemd's account of the failure in one line."""
    result, code, status = (environment.get(name, "") for name in _VARIABLES)
    if not result:
        return f"{unit} entered the state failed"
    line = f"{unit}: {result}" + (f", {code} {status}" if code else "")
    if code == "exited" and status == str(ConfigurationError.exit_code):
        line += " (the configuration is not valid: holdfast check --config)"
    return line[:200]


def _remember(host: Host, told: list[str]) -> None:
    try:
        last_words.remember(host, told)
    except FileTrouble as error:
        _say("<4>", f"this alert will not be resolved by itself: {error.message}")


def usable_receivers(files: Files) -> tuple[ReceiverSettings, ...]:
    """The configured receivers; with a configuration that is not valid, those whose own table is."""
    try:
        return config.load(files).receivers
    except Exception:  # noqa: BLE001 - whatever is wrong there, what can be used is used
        return tuple(_salvaged(files))


def _salvaged(files: Files) -> Iterator[ReceiverSettings]:
    seen: set[str] = set()
    kinds = plugin.receivers()
    for table in _receiver_tables(files):
        kind = kinds.get(str(table.get("kind")))
        if kind is None:
            continue
        try:
            settings = kind.settings.model_validate(table)
        except ValidationError:
            continue
        if settings.name not in seen:
            seen.add(settings.name)
            yield settings


def _receiver_tables(files: Files) -> Iterator[Mapping[str, Any]]:
    names = [config.CONFIG_FILE]
    with contextlib.suppress(FileTrouble):
        names += [f"{config.CONFIG_DIRECTORY}/{name}" for name in files.listdir(config.CONFIG_DIRECTORY)]
    for name in names:
        try:
            document = tomllib.loads(files.read_text(name).removeprefix("\ufeff"))
        except (FileTrouble, tomllib.TOMLDecodeError):
            continue
        tables = document.get("receiver", [])
        yield from (table for table in tables if isinstance(table, dict)) if isinstance(tables, list) else ()


def _say(level: str, words: str) -> None:
    """One line to the journal with its syslog level (sd-daemon(3))."""
    sys.stderr.write(f"{level}{words}\n")


if __name__ == "__main__":
    sys.exit(main())
