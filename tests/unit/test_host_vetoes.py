"""The record of the apt guard's last refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import FileTrouble
from agent.host import vetoes
from agent.host.vetoes import FILE, Veto
from tests.support.fake_host import FakeHost

VETO = Veto(1000.5, "b1", "apt-get dist-upgrade", False, "nvidia-utils-550-server", "550.54.15 to 580.178.04")
WORDS = st.text(max_size=60)


def test_where_nothing_was_refused_there_is_none() -> None:
    assert vetoes.last(FakeHost.build({})) is None


@given(st.builds(Veto, st.floats(0, 1e11), WORDS, WORDS, st.booleans(), WORDS, WORDS))
def test_what_is_kept_is_read(veto: Veto) -> None:
    assert vetoes.last(FakeHost.build({FILE: vetoes.text(veto)})) == veto


def test_without_the_runners_folder_nothing_is_kept() -> None:
    host = FakeHost.build({})
    vetoes.record(host, VETO)
    assert not host.files.exists(FILE)


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '"x"', '{"at": "soon"}'])
def test_what_is_no_record_is_told(broken: str) -> None:
    with pytest.raises(FileTrouble) as told:
        vetoes.last(FakeHost.build({FILE: broken}))
    assert told.value.kind == "other"


def test_it_is_readable_by_the_daemon_and_nobody_else() -> None:
    written: dict[str, Any] = {}

    class Files:
        def exists(self, path: str) -> bool:
            return path == vetoes.FOLDER

        def write_atomic(self, path: str, text: str, mode: int = 0o644, *, group: str | None = None) -> None:
            written.update(path=path, text=text, mode=mode, group=group)

    host = FakeHost.build({})
    object.__setattr__(host, "files", Files())
    vetoes.record(host, VETO)
    assert (written["path"], written["mode"], written["group"]) == (FILE, 0o640, "holdfast")
    assert vetoes.last(FakeHost.build({FILE: written["text"]})) == VETO
