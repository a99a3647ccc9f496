"""What we say in the journal: one line, systemd's level in front, secrets taken out."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from agent import logs


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    root = logging.getLogger()
    handlers, level, journal = root.handlers[:], root.level, io.StringIO()
    monkeypatch.setattr(logging, "raiseExceptions", True)
    hooks = sys.excepthook, threading.excepthook
    for handler in handlers:
        root.removeHandler(handler)  # what pytest put there must not be closed
    logs.to_journal("info", journal)
    yield journal.getvalue
    sys.excepthook, threading.excepthook = hooks
    root.handlers[:] = handlers
    root.setLevel(level)


def test_the_level_goes_in_front_for_journald(said: Callable[[], str]) -> None:
    logging.getLogger("a").warning("receiver %s fails", "primary")
    assert said() == "<4>receiver primary fails\n"


def test_a_record_is_one_line(said: Callable[[], str]) -> None:
    logging.getLogger("a").info("first\nsecond\r\n<0>forged")
    assert said() == "<6>first second <0>forged\n"


@pytest.mark.parametrize(
    "words", ["--api-key s3cr3t-value", "api_key=s3cr3t-value", "https://user:s3cr3t-value@pager.example/x"]
)
def test_secrets_are_taken_out(said: Callable[[], str], words: str) -> None:
    logging.getLogger("a").error("started with %s", words)
    assert "s3cr3t-value" not in said()


def test_what_is_below_the_level_is_not_said(said: Callable[[], str]) -> None:
    logging.getLogger("a").debug("noise")
    logging.getLogger("apscheduler.scheduler").warning("noise")
    assert said() == ""


def test_the_level_can_be_changed_while_running(said: Callable[[], str]) -> None:
    logs.set_level("error")
    logging.getLogger("a").warning("quiet")
    logs.set_level("debug")
    logging.getLogger("a").debug("loud")
    assert said() == "<7>loud\n"


def test_a_crash_is_told_by_its_place_and_not_by_its_message(said: Callable[[], str]) -> None:
    try:
        float("a prompt")
    except ValueError:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    thread = threading.Thread(target=lambda: int("another prompt"))
    thread.start()
    thread.join()
    assert "prompt" not in said()
    assert said().count("ValueError > ") == 2
    assert "test_logs.py:" in said()
