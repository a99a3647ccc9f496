"""The configuration: every mistake at once, none that tells a secret, and what root refuses to obey."""

from __future__ import annotations

import pytest

from agent import config
from agent.config import CONFIG_DIRECTORY, CONFIG_FILE, Config
from agent.errors import ConfigurationError, FileTrouble
from tests.support.fake_files import Directory, Entry, FakeFiles, File, Link

ENGINE = '[[engine]]\nname = "chat"\nkind = "llama.cpp"\nurl = "http://127.0.0.1:8080"\nunit = "chat.service"\n'


def load(files: dict[str, Entry] | str, owner: int | None = None) -> Config:
    return config.load(FakeFiles({CONFIG_FILE: files} if isinstance(files, str) else files), owner=owner)


def mistakes(files: dict[str, Entry] | str, owner: int | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(files, owner)
    return "\n".join(str(mistake) for mistake in caught.value.mistakes)


def test_without_a_file_nothing_is_configured() -> None:
    assert not load({}).configured


def test_root_obeys_what_root_alone_can_change() -> None:
    assert load({CONFIG_FILE: ENGINE, f"{CONFIG_DIRECTORY}/a.toml": File("[pager]\npage_after_s = 5\n")}, 0).configured


@pytest.mark.parametrize(
    "entries",
    [
        {CONFIG_FILE: File(ENGINE, mode=0o664)},
        {CONFIG_FILE: File(ENGINE, uid=1000)},
        {CONFIG_FILE: File(ENGINE), "/etc/holdfast": Directory(uid=1000)},
        {CONFIG_FILE: File(ENGINE), "/etc/holdfast": Directory(mode=0o770)},
        {CONFIG_FILE: File(ENGINE), "/etc": Directory(mode=0o777)},
        {f"{CONFIG_DIRECTORY}/a.toml": File(ENGINE), CONFIG_DIRECTORY: Directory(uid=1000)},
    ],
)
def test_root_refuses_what_somebody_else_could_change_also_by_renaming(entries: dict[str, Entry]) -> None:
    assert load(entries).configured, "whoever only reads may read it"
    assert "others than root can write it" in mistakes(entries, owner=0)


def test_root_refuses_a_link() -> None:
    entries: dict[str, Entry] = {CONFIG_FILE: Link("/home/x/a.toml"), "/home/x/a.toml": ENGINE}
    assert "symbolic link" in mistakes(entries, owner=0)


def test_a_directory_that_may_not_be_entered_is_a_mistake_and_no_crash() -> None:
    denied = FileTrouble(f"{CONFIG_FILE}: Permission denied", kind="denied", where=CONFIG_FILE)

    class Shut(FakeFiles):
        def exists(self, path: str) -> bool:
            raise denied

    with pytest.raises(ConfigurationError, match="Permission denied"):
        config.load(Shut())


@pytest.mark.parametrize(
    "text",
    [
        '[heartbeat]\nurl = "hc-ping.com/SECRET"\n',
        '[[receiver]]\nname = "a"\nkind = "webhook"\nurl = "htps://hooks.test/SECRET"\n',
        '[[receiver]]\nname = "a"\nkind = "webhook"\nurl = "https://a.test"\nsecret_file = "SECRET"\n',
        '[[receiver]]\nname = "a"\nkind = "pagerduty"\nrouting_key_file = "SECRET"\n',
        ENGINE.replace("http://", "http://user:SECRET@"),
    ],
)
def test_a_mistake_is_told_without_the_secret_in_it(text: str) -> None:
    assert "SECRET" not in mistakes(text)


def test_a_wrong_value_without_a_secret_is_shown_and_not_at_length() -> None:
    assert "'sometimes'" in mistakes('[autonomy]\nmode = "sometimes"\n')
    assert len(mistakes(f'[autonomy]\nmode = "{"x" * 5000}"\n')) < 400


def test_two_engines_cannot_share_a_unit_because_locks_and_budgets_are_per_engine() -> None:
    second = ENGINE.replace("chat", "other", 1).replace("8080", "8081")
    assert "engine[1].unit: 'chat.service' is already the unit of 'chat'" in mistakes(ENGINE + second)
    assert load(ENGINE + second.replace("chat.service", "other.service")).engine("other") is not None


def test_engines_without_a_unit_share_nothing() -> None:
    bare = ENGINE.replace('unit = "chat.service"\n', "")
    assert len(load(bare + bare.replace("chat", "other", 1)).engines) == 2


def test_the_idle_canary_is_run_as_often_as_the_engine_says() -> None:
    cadence = {c.id: t.every_s for c, t in load(ENGINE + "idle_canary_s = 120\n").targets()}
    assert cadence["engine.generates"] == 120
    assert {c.id: t.every_s for c, t in load(ENGINE).targets()}["engine.generates"] == 0
