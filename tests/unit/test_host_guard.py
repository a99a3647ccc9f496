"""The guard that keeps unit tests off the machine."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest


def test_a_real_program_is_objected_to(machine_guard: Any) -> None:
    with pytest.raises(AssertionError, match="starts a program"):
        subprocess.run(["true"], check=True)
    machine_guard.objections.clear()


def test_a_socket_is_objected_to(machine_guard: Any) -> None:
    with socket.socket() as end, pytest.raises(AssertionError, match="connects a socket"):
        end.connect(("127.0.0.1", 9))
    machine_guard.objections.clear()


def test_a_write_outside_the_checkout_is_objected_to(machine_guard: Any) -> None:
    with pytest.raises(AssertionError, match="outside the checkout"):
        Path("/var/holdfast-test").write_text("x")
    machine_guard.objections.clear()


def test_a_write_to_the_temporary_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")


def test_an_objection_that_was_swallowed_is_remembered(machine_guard: Any) -> None:
    with contextlib.suppress(AssertionError):
        subprocess.run(["true"], check=True)
    assert machine_guard.objections
    machine_guard.objections.clear()
