"""The program behind script/record-fixture: one check, observed on the real host, becomes a fixture."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from agent import config, plugin
from agent.errors import HoldfastError
from agent.host.real import real_host
from agent.plugin import file_name
from tests.support.recorder import Recorder

DATA = Path(__file__).resolve().parents[1] / "data"


def main() -> int:
    """Record, and say what to do next; the exit status of a program."""
    words = argparse.ArgumentParser(prog="script/record-fixture", description=__doc__)
    words.add_argument("check", help="the check's id, for example engine.alive")
    words.add_argument("case", help="what the host shows, for example sigstopped")
    words.add_argument("--subject", default="host", help="host or engine:NAME")
    words.add_argument("--config", default=config.CONFIG_FILE, help="the configuration to read")
    words.add_argument("--root", default="/", help="where the host's files are seen")
    given = words.parse_args()
    try:
        case = record(given.check, given.case, given.subject, given.config, given.root)
    except HoldfastError as error:
        words.exit(2, f"record-fixture: {error}\n")
    print(f"recorded in {case}: read it, complete SOURCE.md, then commit it")
    return 0


def record(check_id: str, case: str, subject: str, configuration: str, root: str) -> Path:
    """The fixture's folder, after `observe` of the check ran once against the real host."""
    host = real_host(root)
    settings = config.load(real_host().files, path=configuration)
    check = plugin.checks().get(check_id)
    target = settings.target(check, subject) if check is not None else None
    if check is None or target is None:
        raise HoldfastError(f"there is no check {check_id!r} that applies to {subject!r}")
    recorder = Recorder(host)
    observed = list(check.observe(recorder.host, target, None))
    folder = DATA / file_name(check_id) / case
    recorder.write(folder)
    expected = [{"name": each.name, "value": each.value, "unit": each.unit} for each in observed]
    (folder / "expected.json").write_text(json.dumps({"observations": expected}, indent=2) + "\n", encoding="utf-8")
    if not (folder / "SOURCE.md").exists():
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "an unknown system")
        text = f"Recorded by script/record-fixture {check_id} {case} on {system}.\n"
        (folder / "SOURCE.md").write_text(text, encoding="utf-8")
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
