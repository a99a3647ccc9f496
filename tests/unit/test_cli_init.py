"""init: finds what runs, asks only what looks like an engine, and writes a configuration that is valid."""

from __future__ import annotations

import pytest

from agent import config
from agent.cli import init
from agent.cli._discover import Discovery, FoundEngine, discover, listeners
from agent.cli.init import Choices, Mode, has_settings, render
from agent.host import Reply
from tests.support.cli import holdfast
from tests.support.fake_host import FakeFiles, FakeHost, File, Link, unreachable

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(address: str, port: int, inode: int, state: str = "0A") -> str:
    rest = "00000000:0000" if len(address) == 8 else "0" * 32 + ":0000"
    return (
        f"   0: {address}:{port:04X} {rest} {state} 00000000:00000000 00:00000000 00000000   998        0 {inode} 1\n"
    )


LLAMA = Reply(200, b'{"status":"ok"}', {"server": "llama.cpp"})


def box(**changes: object) -> FakeHost:
    files = {
        "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "/sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
        "/sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",
        "/sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n",
        "/sys/bus/pci/devices/0000:02:00.0/vendor": "0x8086\n",
        "/sys/bus/pci/devices/0000:02:00.0/class": "0x020000\n",
        "/sys/module/nvidia/version": "580.178.04\n",
        "/proc/net/tcp": HEAD
        + row("0100007F", 9000, 111)
        + row("00000000", 22, 222)
        + row("0100007F", 41000, 333, "01"),
        "/proc/net/tcp6": HEAD,
        "/proc/42/fd/3": Link("socket:[111]"),
        "/proc/42/cmdline": "/opt/llama.cpp/bin/llama-server\0-m\0model.gguf\0",
        "/proc/42/cgroup": "0::/system.slice/chat-7b.service\n",
        "/proc/77/fd/3": Link("socket:[222]"),
        "/proc/77/cmdline": "sshd: /usr/sbin/sshd\0",
        "/proc/77/cgroup": "0::/system.slice/ssh.service\n",
        "/etc/group": "root:x:0:\n",
    }
    http = {"http://127.0.0.1:9000/*": LLAMA}
    return FakeHost.build({**files, **changes}, http=http)  # type: ignore[dict-item]


def test_the_gpu_the_driver_and_the_engine_are_found_with_its_unit() -> None:
    found = discover(box())
    assert found.gpus == ("0000:01:00.0",)
    assert found.loaded == "580.178.04"
    (engine,) = found.engines
    assert (engine.name, engine.kind, engine.url) == ("chat-7b", "llama.cpp", "http://127.0.0.1:9000")
    assert (engine.unit, engine.pid) == ("chat-7b.service", 42)


def test_a_router_and_its_models_are_one_engine() -> None:
    host = box(**{
        "/proc/net/tcp": HEAD + row("0100007F", 9000, 111) + row("0100007F", 45001, 444),
        "/proc/43/fd/3": Link("socket:[444]"),
        "/proc/43/cmdline": "/opt/llama.cpp/bin/llama-server\0--port\045001\0",
        "/proc/43/cgroup": "0::/system.slice/chat-7b.service\n",
    })  # fmt: skip
    host.http.answer("http://127.0.0.1:45001/*", LLAMA)
    found = discover(host)
    assert [engine.url for engine in found.engines] == ["http://127.0.0.1:9000"]
    assert "left out" in found.notes[-1]
    assert valid(render(found, Choices())).engines


def test_nothing_but_what_looks_like_an_engine_is_asked() -> None:
    host = box()
    discover(host)
    assert {call.url.split("/")[2] for call in host.http.calls} == {"127.0.0.1:9000"}
    assert len(host.http.calls) <= 2


def test_an_engine_that_does_not_listen_on_loopback_is_noted_and_not_asked() -> None:
    host = box(**{"/proc/net/tcp": HEAD + row("0500000A", 9000, 111)})
    found = discover(host)
    assert found.engines == ()
    assert "does not listen on loopback" in found.notes[0]
    assert host.http.calls == []


def test_something_that_only_looks_like_an_engine_is_noted() -> None:
    host = box()
    host.http.answer("http://127.0.0.1:9000/*", unreachable("timeout"))
    found = discover(host)
    assert found.engines == ()
    assert "looks like llama.cpp, but does not answer like it" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "version", "url"),
    [
        (row("00000000", 8080, 1), 4, "http://127.0.0.1:8080"),
        (row("0100007F", 8080, 1), 4, "http://127.0.0.1:8080"),
        (row("0" * 32, 8080, 1), 6, "http://127.0.0.1:8080"),
        (row("00000000000000000000000001000000", 8080, 1), 6, "http://[::1]:8080"),
        (row("0000000000000000FFFF00000100007F", 8080, 1), 6, "http://127.0.0.1:8080"),
        (row("0500000A", 8080, 1), 4, None),
    ],
)
def test_sockets_are_read_as_the_kernel_writes_them(text: str, version: int, url: str | None) -> None:
    (found,) = listeners(HEAD + text, version=version)
    assert (found.port, found.url) == (8080, url)


@pytest.mark.parametrize(
    "text", ["", "nonsense", HEAD + "   0: XYZ 1\n", HEAD + row("0100", 1, 1), HEAD + row("0100007F", 1, 1, "06")]
)
def test_lines_that_are_no_listening_socket_are_left_out(text: str) -> None:
    assert list(listeners(text, version=4)) == []


def valid(text: str) -> config.Config:
    return config.load(FakeFiles({config.CONFIG_FILE: text}))


ENGINES = (
    FoundEngine("chat", "llama.cpp", "http://127.0.0.1:8080", 1, "chat.service", {"kind": "llama.cpp"}),
    FoundEngine("other", "llama.cpp", "http://[::1]:8081", 2, None, {}),
)


def test_what_is_written_is_a_valid_configuration() -> None:
    choices = Choices(Mode.ACT, "/etc/holdfast/secrets/pd", 'https://hook.example/x?a="b"\x7f', "https://hc.example/1")
    settings = valid(render(Discovery(("0000:01:00.0",), "1", "1", ENGINES), choices))
    assert [engine.name for engine in settings.engines] == ["chat", "other"]
    assert [receiver.kind for receiver in settings.receivers] == ["pagerduty", "webhook"]
    assert settings.receivers[1].url == 'https://hook.example/x?a="b"\x7f'
    assert settings.autonomy.mode.value == "act"
    assert settings.heartbeat is not None


def test_what_is_commented_out_is_valid_too() -> None:
    text = render(Discovery(), Choices())
    settings = valid(text)
    assert not settings.configured
    uncommented = [
        line.removeprefix("# ")
        for line in text.splitlines()
        if line.startswith(("# [", "# name", "# kind", "# url", "# unit", "# rout"))
    ]
    assert valid("\n".join(uncommented)).configured


def test_init_writes_for_the_daemon_and_says_what_to_do_next() -> None:
    host = box(**{"/etc/group": "holdfast:x:990:\n"})
    said = holdfast("init", "--yes", "--webhook", "https://hook.example/x", host=host)
    assert said.code == 0, said.err
    assert host.files.entries[init.CONFIG_FILE].mode == 0o640
    assert host.files.entries[init.CONFIG_FILE].group == "holdfast"
    assert "sudo systemctl reload-or-restart holdfast" in said.out
    assert "holdfast pager test" in said.out
    assert "sudo holdfast lock write" in said.out
    assert valid(host.files.read_text(init.CONFIG_FILE)).autonomy.mode.value == "observe"


def test_a_configuration_with_settings_is_not_replaced_without_force() -> None:
    host = box(**{init.CONFIG_FILE: '[autonomy]\nmode = "act"\n'})
    said = holdfast("init", "--yes", host=host)
    assert said.code == 64
    assert "[configured]" in said.err
    assert host.files.written == []


def test_force_keeps_a_copy() -> None:
    host = box(**{init.CONFIG_FILE: '[autonomy]\nmode = "act"\n'})
    said = holdfast("init", "--yes", "--force", "--json", host=host)
    assert said.code == 0
    assert host.files.read_text(said.json["data"]["backup"]) == '[autonomy]\nmode = "act"\n'


def test_the_shipped_file_of_comments_is_replaced_without_force() -> None:
    host = box(**{init.CONFIG_FILE: "# nothing\n\n"})
    assert holdfast("init", "--yes", host=host).code == 0
    assert has_settings(host.files.read_text(init.CONFIG_FILE))


def test_print_writes_nothing_and_needs_no_root() -> None:
    host = box()
    said = holdfast("init", "--print", "--autonomy", "ask", host=host, uid=1000)
    assert (said.code, host.files.written) == (0, [])
    assert valid(said.out).autonomy.mode.value == "ask"


def test_a_person_at_a_terminal_is_asked_what_it_may_do() -> None:
    host = box()
    said = holdfast("init", host=host, typed="perhaps\nact\n")
    assert "What may Holdfast do by itself?" in said.out
    assert said.code == 0
    assert valid(host.files.read_text(init.CONFIG_FILE)).autonomy.mode.value == "act"


@pytest.mark.parametrize("typed", ["", "no\nno\nno\n"])
def test_no_answer_writes_nothing(typed: str) -> None:
    host = box()
    said = holdfast("init", host=host, typed=typed)
    assert (said.code, host.files.written) == (64, [])


@pytest.mark.parametrize(
    "option", [["--webhook", "nonsense"], ["--pagerduty-key-file", "relative"], ["--pagerduty-key-file", "/etc/absent"]]
)
def test_an_option_that_cannot_work_is_refused_before_anything_is_looked_at(option: list[str]) -> None:
    host = box()
    said = holdfast("init", "--yes", *option, host=host)
    assert (said.code, host.files.written, host.http.calls) == (64, [], [])


def test_a_key_file_that_is_there_is_used() -> None:
    host = box(**{"/etc/holdfast/secrets/pd": File("k", mode=0o640)})
    holdfast("init", "--yes", "--pagerduty-key-file", "/etc/holdfast/secrets/pd", host=host)
    assert valid(host.files.read_text(init.CONFIG_FILE)).receivers[0].kind == "pagerduty"


COMMIT = "1d7ab2b94abc1d7ab2b94abc1d7ab2b94abc1d7a"
RELEASE = "/opt/llama.cpp/releases/b9272-1d7ab2b94abc+cuda12.8+sm89"


def prepared(**changes: object) -> FakeHost:
    """A host whose engine runs from a link to a release, with a repository beside it."""
    host = box(**{
        "/proc/42/cmdline": "/opt/llama.cpp/current/bin/llama-server\0-m\0model.gguf\0",
        "/opt/llama.cpp/current": Link(RELEASE),
        f"{RELEASE}/bin/llama-server": "",
        f"{RELEASE}/bin/libggml-cuda.so": "",
        "/opt/llama.cpp/src/.git/HEAD": "ref: refs/heads/master\n",
        **changes,
    })  # fmt: skip
    host.http.answer("http://127.0.0.1:9000/props", {"build_info": "b9272-1d7ab2b94", "total_slots": 1})
    host.run.answer(("env", ...), lambda argv: f"{COMMIT}\n" if argv[-1] == "1d7ab2b94^{commit}" else 1)
    return host


def test_an_engine_that_runs_through_a_link_beside_its_source_can_be_rebuilt_from_what_serves() -> None:
    (engine,) = discover(prepared()).engines
    assert engine.rebuild == {
        "releases": "/opt/llama.cpp/releases",
        "current": "/opt/llama.cpp/current",
        "cmake": ["-DGGML_CUDA=ON"],
        "source": "/opt/llama.cpp/src",
        "commit": COMMIT,
    }


def test_what_was_built_here_says_itself_of_which_commit_it_is() -> None:
    host = prepared(**{f"{RELEASE}/provenance.json": '{"commit": "' + COMMIT + '"}'})
    host.run.answer(("env", ...), lambda argv: f"{COMMIT}\n" if argv[-1] == f"{COMMIT}^{{commit}}" else 1)
    (engine,) = discover(host).engines
    assert engine.rebuild["commit"] == COMMIT


def test_the_table_of_a_rebuild_is_valid_where_all_is_known_and_a_comment_where_not() -> None:
    found = discover(prepared())
    text = render(found, Choices())
    assert f'commit = "{COMMIT}"' in text
    loaded = config.load(FakeFiles({config.CONFIG_FILE: File(text)}))
    (engine,) = loaded.engines
    assert engine.rebuild.recipe("chat").cuda  # type: ignore[attr-defined]
    host = prepared()
    host.run.answer(("env", ...), 1)
    lacking = render(discover(host), Choices())
    assert "# [engine.rebuild]" in lacking
    assert "\n[engine.rebuild]" not in lacking
    (bare,) = config.load(FakeFiles({config.CONFIG_FILE: File(lacking)})).engines
    assert bare.rebuild is None  # type: ignore[attr-defined]


def test_an_engine_that_runs_through_no_link_is_left_as_it_is() -> None:
    (engine,) = discover(box()).engines
    assert engine.rebuild == {}
    assert "rebuild" not in render(discover(box()), Choices())
