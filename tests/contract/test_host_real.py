"""The real primitives against hostile servers, stubborn programs and peers that hang up: loopback and children only."""

from __future__ import annotations

import contextlib
import grp
import gzip
import os
import pwd
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CommandFailed, DaemonUnreachable, HostError, Unreachable
from agent.host import child as child_module
from agent.host import commands, ipc, nvml, process
from agent.host.child import RealChild
from agent.host.commands import RealCommands
from agent.host.events import RealEvents
from agent.host.files import RealFiles
from agent.host.real import real_host
from agent.host.web import RealHttp

Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server on loopback: each connection is handed to a function, in a thread."""
    stop = threading.Event()
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        with connection, contextlib.suppress(OSError):
            answer(connection)

    def accept(listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                thread = threading.Thread(target=handle, args=(connection, answer), daemon=True)
                thread.start()
                threads.append(thread)

    def start(answer: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(0.02)
        listeners.append(listener)
        thread = threading.Thread(target=accept, args=(listener, answer), daemon=True)
        thread.start()
        threads.append(thread)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    stop.set()
    for listener in listeners:
        listener.close()
    for thread in threads:
        thread.join(5)


def request(connection: socket.socket) -> bytes:
    """What the client asked, headers and body."""
    said = b""
    while b"\r\n\r\n" not in said and (chunk := connection.recv(65536)):
        said += chunk
    head, _, body = said.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            while len(body) < int(line.split(b":")[1]):
                body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answer_with(data: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(data)

    return answer


def closed_by_client(connection: socket.socket) -> bool:
    """Whether the client hangs up within 2 s."""
    connection.settimeout(2)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def kind_of(url: str, timeout_s: float = 1.0, **options: Any) -> str:
    with pytest.raises(Unreachable) as raised:
        RealHttp()("GET", url, timeout_s=timeout_s, **options)
    return raised.value.kind


# --- HTTP ----------------------------------------------------------------------------------------------------


def test_an_answer_is_whole_whatever_its_status(serve: Serve) -> None:
    url = serve(answer_with(b'HTTP/1.1 503 Busy\r\nX-A: 1\r\nContent-Length: 14\r\n\r\n{"error": "no"}'[:-1] + b"}"))
    reply = RealHttp()("GET", url + "/health", timeout_s=2)
    assert (reply.status, reply.headers["x-a"]) == (503, "1")
    assert 0 < reply.elapsed_s < 2


def test_what_is_sent_is_plain_and_closes(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        asked.append(request(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\n{}")

    http, url = RealHttp(), serve(answer)
    http("POST", url + "/x", timeout_s=2, json={"n_predict": 1}, headers={"Authorization": "Bearer k"})
    http("POST", url + "/x", timeout_s=2, body=b"raw")
    first = asked[0].lower()
    for wanted in (b"accept-encoding: identity", b"connection: close", b"authorization: bearer k", b"application/json"):
        assert wanted in first
    assert asked[0].endswith(b'{"n_predict": 1}')
    assert asked[1].endswith(b"\r\n\r\nraw")
    assert b"cookie" not in asked[1].lower()


def test_redirects_are_answers(serve: Serve) -> None:
    url = serve(answer_with(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"))
    assert RealHttp()("GET", url, timeout_s=2).status == 302


def test_nobody_listening_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable) as raised:
        RealHttp()("GET", f"http://127.0.0.1:{port}/secret?key=1", timeout_s=1)
    assert raised.value.kind == "refused"
    assert raised.value.unsent
    assert "secret" not in str(raised.value)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_at_deadline(took_s: float, deadline_s: float) -> None:
    """It ended because of its deadline, not before it, and not when the other side was done. How soon is no test."""
    assert deadline_s - 0.05 <= took_s < 8


def timed(url: str, timeout_s: float, kind: str = "timeout") -> float:
    started = time.monotonic()
    assert kind_of(url, timeout_s) == kind
    return time.monotonic() - started


def test_a_server_that_takes_the_connection_and_is_silent_ends_at_the_deadline(serve: Serve) -> None:
    hung_up: list[bool] = []
    url = serve(lambda connection: hung_up.append(closed_by_client(connection)))
    assert_at_deadline(timed(url, 0.5), 0.5)
    time.sleep(0.2)
    assert hung_up == [True]


def test_a_server_that_never_accepts_ends_at_the_deadline() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with contextlib.ExitStack() as stack:  # fill the backlog, as a frozen server's clients do
            for _ in range(4):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(address)
            assert_at_deadline(timed(f"http://127.0.0.1:{address[1]}", 0.5), 0.5)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Drip: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["status", "header", "body", "chunk", "until-close"],
)
def test_a_server_that_drips_ends_at_the_deadline(serve: Serve, head: bytes) -> None:
    hung_up = threading.Event()

    def drip(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(head)
        try:
            for _ in range(200):
                connection.sendall(b"H" if head else b"1")
                time.sleep(0.05)
        except OSError:
            hung_up.set()

    assert_at_deadline(timed(serve(drip), 0.7), 0.7)
    assert hung_up.wait(2)


def test_endless_provisional_answers_end_at_the_deadline(serve: Serve) -> None:
    def nag(connection: socket.socket) -> None:
        request(connection)
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.01)

    assert_at_deadline(timed(serve(nag), 0.5), 0.5)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\n",
    ],
    ids=["announced", "until-close", "chunked"],
)
def test_an_answer_of_ten_gigabytes_is_cut_at_the_limit(serve: Serve, head: bytes) -> None:
    sent: list[int] = []

    def flood(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(head)
        sent.append(0)
        for _ in range(10 << 10):
            connection.sendall(b"x" * (1 << 20))
            sent[0] += 1

    assert kind_of(serve(flood), timeout_s=10, limit=100_000) == "too-large"
    time.sleep(0.2)
    assert sent[0] < 64  # what fits into the sockets' buffers, not 10 GB


def test_an_answer_of_exactly_the_limit_is_whole(serve: Serve) -> None:
    url = serve(answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000))
    assert len(RealHttp()("GET", url, timeout_s=2, limit=1000).body) == 1000
    assert kind_of(url, limit=999) == "too-large"


def test_a_compressed_answer_counts_as_what_it_unpacks_to(serve: Serve) -> None:
    bomb = gzip.compress(b"x" * (50 << 20))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    assert kind_of(serve(answer_with(head % len(bomb) + bomb)), limit=1 << 20) == "too-large"
    small = gzip.compress(b"hello")
    assert RealHttp()("GET", serve(answer_with(head % len(small) + small)), timeout_s=2).body == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: 1\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 abc OK\r\n\r\n",
    ],
    ids=["nothing", "empty", "ssh", "torn", "chunks", "headers", "long-header", "coding", "gzip", "status"],
)
def test_a_broken_answer_is_broken_and_nothing_else(serve: Serve, answer: bytes) -> None:
    assert kind_of(serve(answer_with(answer)), timeout_s=3) == "broken"


def test_a_connection_that_is_reset_is_broken(serve: Serve) -> None:
    def reset(connection: socket.socket) -> None:
        request(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    assert kind_of(serve(reset)) == "broken"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "foo",
        "http://",
        "http://[::1",
        "http://a b/",
        "ftp://127.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://\ud800/",
    ],
)
def test_what_is_no_address_is_broken_and_nothing_else(url: str) -> None:
    assert kind_of(url) == "broken"


def test_a_name_is_looked_up_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    lookups: list[str] = []

    def slow(host: str, *rest: Any, **options: Any) -> Any:
        lookups.append(host)
        release.wait(5)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    assert_at_deadline(timed("http://slow.invalid/", 0.3, "broken"), 0.3)
    assert_at_deadline(timed("http://slow.invalid/", 0.3, "broken"), 0.3)
    assert lookups == ["slow.invalid"]  # the first is still under way
    release.set()


def test_a_name_that_is_not_resolved_in_time_is_no_silence_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def mute(*rest: Any, **options: Any) -> Any:
        release.wait(5)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", mute)
    with pytest.raises(Unreachable, match="name could not be resolved") as raised:
        RealHttp()("GET", "http://mute.invalid/", timeout_s=0.3)
    release.set()
    assert (raised.value.kind, raised.value.unsent) == ("broken", True)


def test_a_second_address_is_tried_within_the_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(serve(answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).rpartition(":")[2])
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            addresses = [full.getsockname(), ("127.0.0.1", port)]
            found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *rest, **options: found)
            assert RealHttp()("GET", f"http://two.invalid:{port}/", timeout_s=2).body == b"ok"


def test_tls_is_verified_against_the_given_store_and_shares_the_deadline(tmp_path: Path, serve: Serve) -> None:
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-addext", "keyUsage=digitalSignature,keyCertSign"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    drips = threading.Event()

    def secure(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            request(tls)
            if not drips.is_set():
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                return
            for _ in range(100):
                tls.sendall(b"H")
                time.sleep(0.05)

    url = serve(secure).replace("http:", "https:")
    trusting = RealHttp(ca_bundle=str(tmp_path / "cert.pem"))
    assert trusting("GET", url, timeout_s=5).body == b"ok"
    with pytest.raises(Unreachable, match="certificate"):
        RealHttp()("GET", url, timeout_s=5)
    with pytest.raises(Unreachable) as raised:
        RealHttp(ca_bundle="/nowhere.crt")("GET", url, timeout_s=5)
    assert raised.value.kind == "broken"
    drips.set()
    started = time.monotonic()
    with pytest.raises(Unreachable) as raised:
        trusting("GET", url, timeout_s=0.7)
    assert raised.value.kind == "timeout"
    assert_at_deadline(time.monotonic() - started, 0.7)


def test_a_tls_handshake_that_stalls_ends_at_the_deadline(serve: Serve) -> None:
    url = serve(lambda connection: bool(closed_by_client(connection))).replace("http:", "https:")
    assert_at_deadline(timed(url, 0.5), 0.5)


def test_no_connection_outlives_its_request(serve: Serve) -> None:
    closed: list[bool] = []

    def keep_alive(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
        closed.append(closed_by_client(connection))

    http, url = RealHttp(), serve(keep_alive)
    for _ in range(3):
        http("GET", url, timeout_s=2)
    time.sleep(0.2)
    assert closed == [True] * 3


def test_threads_may_ask_at_once(serve: Serve) -> None:
    http, url = RealHttp(), serve(answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(http("GET", url, timeout_s=5).body)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bodies == [b"ok"] * 8


def test_a_probe_costs_about_a_millisecond(serve: Serve) -> None:
    http, url = RealHttp(), serve(answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    http("GET", url, timeout_s=2)
    before = time.thread_time()
    for _ in range(50):
        http("GET", url, timeout_s=2)
    assert (time.thread_time() - before) / 50 < 0.004  # 0.6 ms on an idle core; two engines every 5 s: 0.02 %


# --- programs ------------------------------------------------------------------------------------------------


def test_a_program_runs_in_a_clean_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    run = RealCommands()
    done = run(["env"], timeout_s=5, env={"A": "b"})
    assert sorted(done.stdout.split()) == [
        "A=b",
        "LC_ALL=C",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]
    assert run(["sh", "-c", "read x; echo end $?; ps -o sid= -p $$"], timeout_s=5).stdout.split()[1] == "1"
    done = run(["sh", "-c", "echo out; echo err >&2; kill -9 $$"], timeout_s=5)
    assert (done.rc, done.stdout, done.stderr) == (-9, "out\n", "err\n")
    assert run(["sh", "-c", "echo $1", "sh", "$(id); x"], timeout_s=5).stdout == "$(id); x\n"
    assert run(["pwd"], timeout_s=5, cwd="/usr").stdout == "/usr\n"


@pytest.mark.parametrize(
    ("argv", "options", "code"),
    [
        (["/no/such/program"], {}, "command-not-found"),
        (["true"], {"cwd": "/no/such/folder"}, "command-not-found"),
        (["/etc/passwd"], {}, "command-not-started"),
        (["true"], {"user": "no-such-user"}, "command-not-started"),
        ([], {}, "command-not-started"),
        ("true", {}, "command-not-started"),
        (["tr\0ue"], {}, "command-not-started"),
    ],
)
def test_what_cannot_be_started_says_why(argv: Any, options: dict[str, Any], code: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        RealCommands()(argv, timeout_s=5, **options)
    assert failed.value.code == code


def test_a_program_that_ignores_sigterm_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "TERM_GRACE_S", 0.3)
    pids = tmp_path / "pids"
    script = f"trap '' TERM; (trap '' TERM; echo $BASHPID >>{pids}; sleep 600) & echo $$ >>{pids}; sleep 600"
    started = time.monotonic()
    with pytest.raises(CommandFailed) as failed:
        RealCommands()(["bash", "-c", script], timeout_s=0.5)
    assert failed.value.code == "command-timeout"
    assert time.monotonic() - started < 5
    time.sleep(0.1)
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_a_program_that_ends_on_sigterm_is_given_the_time() -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed):
        RealCommands()(["sleep", "600"], timeout_s=0.3)
    assert time.monotonic() - started < 1.5


def test_a_program_in_d_state_never_blocks_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "killpg", lambda group, number: None)  # as signals do nothing to a process in D state
    monkeypatch.setattr(commands, "TERM_GRACE_S", 0.1)
    monkeypatch.setattr(commands, "KILL_GRACE_S", 0.1)
    run = RealCommands()
    started = time.monotonic()
    with pytest.raises(CommandFailed):
        run(["sleep", "1.5"], timeout_s=0.2)
    assert time.monotonic() - started < 1
    assert run.reap() == 1
    wait_until(lambda: run.reap() == 0)


def test_what_a_program_leaves_behind_does_not_hold_up_the_answer() -> None:
    started = time.monotonic()
    done = RealCommands()(["sh", "-c", "sleep 3 & echo now"], timeout_s=10)
    assert (done.stdout, done.truncated) == ("now\n", False)
    assert time.monotonic() - started < 2


def test_output_over_the_limit_is_read_and_dropped() -> None:
    done = RealCommands()(["sh", "-c", "head -c 3000000 /dev/zero; head -c 9 /dev/zero >&2"], timeout_s=20, limit=1000)
    assert (len(done.stdout), len(done.stderr), done.rc, done.truncated) == (1000, 9, 0, True)


def test_a_program_that_never_stops_talking_ends_at_the_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed):
        RealCommands()(["yes"], timeout_s=0.5, limit=1000)
    assert time.monotonic() - started < 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_another_user_has_none_of_our_groups() -> None:
    nobody = pwd.getpwnam("nobody")
    done = RealCommands()(["id"], timeout_s=5, user="nobody")
    group = grp.getgrgid(nobody.pw_gid).gr_name
    assert (
        done.stdout.strip()
        == f"uid={nobody.pw_uid}(nobody) gid={nobody.pw_gid}({group}) groups={nobody.pw_gid}({group})"
    )


def test_no_descriptor_is_left_open(serve: Serve) -> None:
    url = serve(answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    run, http = RealCommands(), RealHttp()

    def everything() -> int:
        run(["true"], timeout_s=5)
        http("GET", url, timeout_s=2)
        with contextlib.suppress(CommandFailed):
            run(["sleep", "9"], timeout_s=0.05)
        with contextlib.suppress(Unreachable):
            http("GET", url, timeout_s=2, limit=1)
        time.sleep(0.2)
        return len(list(Path("/proc/self/fd").iterdir()))

    assert everything() == everything()


# --- the disposable child ------------------------------------------------------------------------------------


def child(tmp_path: Path, code: str) -> RealChild:
    program = tmp_path / "probe.py"
    program.write_text(code)
    return RealChild(RealFiles(), {"probe": program})


def test_a_child_answers_with_one_line_and_is_reaped(tmp_path: Path) -> None:
    asked = child(tmp_path, "import sys\nprint('{\"isolated\": %d}' % sys.flags.isolated)")
    assert asked.ask("probe", deadline_s=10) == {"isolated": 1}
    assert asked.stuck() is None
    assert asked.ask("probe", deadline_s=10) == {"isolated": 1}


def test_a_child_that_hangs_is_left_alone_and_never_doubled(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    asked = child(tmp_path, f"import time\nopen({str(marks)!r}, 'a').write('x')\ntime.sleep(0.8)\nprint('{{}}')")
    started = time.monotonic()
    assert asked.ask("probe", deadline_s=0.4) is None
    assert_at_deadline(time.monotonic() - started, 0.4)
    stuck = asked.stuck()
    assert stuck is not None
    assert stuck["state"] == "S"
    assert 0.3 < stuck["age_s"] < 2
    assert asked.ask("probe", deadline_s=0.1) is None
    assert marks.read_text() == "x"
    wait_until(lambda: asked.stuck() is None)  # it was never killed: it ended by itself and was reaped
    assert asked.ask("probe", deadline_s=10) == {}
    assert marks.read_text() == "xx"


@pytest.fixture
def own_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe of this test's own: all probes of one file take turns, also those of tests that run beside it."""
    program = tmp_path / "nvml_child.py"
    program.write_bytes(child_module.PROGRAMS["nvml"].read_bytes())
    monkeypatch.setitem(child_module.PROGRAMS, "nvml", program)  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_turn")
def test_a_question_that_hangs_keeps_every_other_asker_of_this_host_out_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text(
        "import os, time\n"
        "class NVMLError(Exception): pass\n"
        "def nvmlInit():\n"
        f"    open('{tmp_path}/inside', 'a').write(str(os.getpid()) + ' ')\n"
        "    time.sleep(60)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    first, second = RealChild(RealFiles()), RealChild(RealFiles())
    asking = threading.Thread(target=lambda: first.ask("nvml", deadline_s=30.0))
    asking.start()
    inside = tmp_path / "inside"
    wait_until(lambda: inside.exists() and inside.read_text(encoding="utf-8") != "")
    assert second.ask("nvml", deadline_s=1.0) is None
    late = second.stuck()
    os.kill(int(inside.read_text(encoding="utf-8").split()[0]), signal.SIGTERM)
    asking.join()
    assert late is not None, "it still waits for its turn"
    wait_until(lambda: len(inside.read_text(encoding="utf-8").split()) == 2)  # and gets it when the first has gone
    os.kill(int(late["pid"]), signal.SIGTERM)
    wait_until(lambda: second.stuck() is None)


def test_a_child_that_answers_and_then_hangs_has_answered_and_is_stuck(tmp_path: Path) -> None:
    asked = child(tmp_path, "import time\nprint('{\"a\": 1}', flush=True)\ntime.sleep(2)")
    started = time.monotonic()
    assert asked.ask("probe", deadline_s=0.8) == {"a": 1}
    assert time.monotonic() - started < 1.9
    assert asked.stuck() is not None
    wait_until(lambda: asked.stuck() is None)


@pytest.mark.parametrize(
    "code", ["import os\nos.abort()", "raise SystemExit(3)", "print('not json')", "print('[]')", "print('x' * 3000000)"]
)
def test_a_child_that_ends_without_an_answer_is_not_silence(tmp_path: Path, code: str) -> None:
    answer = child(tmp_path, code).ask("probe", deadline_s=10)
    assert answer is not None
    assert answer["failed"]


def test_two_threads_ask_one_after_the_other(tmp_path: Path) -> None:
    asked = child(tmp_path, "import time\ntime.sleep(0.3)\nprint('{}')")
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(asked.ask("probe", deadline_s=10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{}, {}, {}]


def test_the_real_probe_answers_whatever_driver_there_is() -> None:
    answer = nvml.ask(real_host(), 30.0)
    assert answer is not None
    assert answer.code != nvml.PROBE_FAILED
    assert answer.meaning or answer.code == nvml.SUCCESS


PYNVML = """
import time
class NVMLError(Exception):
    def __init__(self, value):
        self.value = value
    def __str__(self):
        return {15: "GPU is lost"}.get(self.value, "no")
class Of:
    def __init__(self, **known):
        self.__dict__.update(known)
def unsupported(handle):
    raise NVMLError(3)
def nvmlInit():
    INIT
nvmlSystemGetDriverVersion = lambda: "580.178.04"
nvmlDeviceGetCount = lambda: 2
def nvmlDeviceGetHandleByIndex(index):
    if index in LOST:
        raise NVMLError(15)
    return index
nvmlDeviceGetMemoryInfo = lambda handle: Of(used=5, total=9)
nvmlDeviceGetUtilizationRates = unsupported
nvmlDeviceGetComputeRunningProcesses = lambda handle: [Of(pid=7, usedGpuMemory=3)]
nvmlDeviceGetGraphicsRunningProcesses = lambda handle: [Of(pid=8, usedGpuMemory=None)]
nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}"
nvmlDeviceGetName = lambda handle: "NVIDIA H200"
"""


@pytest.mark.usefixtures("own_turn")
@pytest.mark.parametrize(
    ("init", "lost", "code", "gpus"),
    [("pass", (), 0, 2), ("pass", (1,), 15, 1), ("raise NVMLError(18)", (), 18, 0), ("time.sleep(1)", (), None, 0)],
    ids=["well", "one-lost", "mismatch", "hangs"],
)
def test_the_probe_tells_what_pynvml_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, lost: tuple[int, ...], code: int | None, gpus: int
) -> None:
    (tmp_path / "pynvml.py").write_text(PYNVML.replace("INIT", init).replace("LOST", repr(lost)))
    monkeypatch.syspath_prepend(str(tmp_path))
    host = real_host()
    answer = nvml.ask(host, 10.0 if code is not None else 0.5)
    if answer is None:
        assert code is None
        wait_until(lambda: host.child.stuck() is None)
        return
    assert (answer.code, len(answer.gpus)) == (code, gpus)
    for gpu in answer.gpus:
        assert (gpu.memory_used_bytes, gpu.utilisation_percent, gpu.pids) == (5, None, ((7, 3), (8, None)))


# --- sockets -------------------------------------------------------------------------------------------------


def test_lines_go_both_ways_and_say_who_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with ipc.Server(path, mode=0o600) as server, ipc.connect(path, 2) as client:
        assert (Path(path).stat().st_mode & 0o777) == 0o600
        end = server.accept(2)
        assert end is not None
        with end:
            assert client.send(b'{"a": 1}')
            assert client.send(b'{"b": 2}\n')
            assert [end.receive(2), end.receive(2)] == [b'{"a": 1}', b'{"b": 2}']
            assert (end.peer().pid, end.peer().uid) == (os.getpid(), os.getuid())
            big = b"x" * 500_000
            writer = threading.Thread(target=end.send, args=(big,))
            writer.start()
            assert client.receive(5, limit=len(big)) == big
            writer.join()
    assert not Path(path).exists()


def test_a_line_that_is_too_long_and_a_line_that_never_ends_are_told_apart() -> None:
    one, other = ipc.pair()
    with one, other:
        one.send(b"x" * 2000)
        with pytest.raises(Unreachable) as raised:
            other.receive(1, limit=1000)
        assert raised.value.kind == "too-large"
    one, other = ipc.pair()
    with one, other:
        started = time.monotonic()
        with pytest.raises(Unreachable) as raised:
            other.receive(0.2)
        assert raised.value.kind == "timeout"
        assert time.monotonic() - started < 1


def test_an_end_that_hung_up_is_an_end_and_never_a_signal() -> None:
    one, other = ipc.pair()
    with other:
        one.send(b"last")
        one.close()
        assert other.receive(1) == b"last"
        assert other.receive(1) is None
        assert other.send(b"x") is False
        assert other.send(b"x") is False


def test_a_line_that_was_torn_off_is_not_a_line() -> None:
    here, there = socket.socketpair()
    with ipc.Lines(here) as end:
        there.sendall(b"whole\nhal")
        there.close()
        assert end.receive(1) == b"whole"
        assert end.receive(1) is None


def test_a_peer_that_does_not_read_cannot_hold_up_the_sender() -> None:
    one, other = ipc.pair()
    with one, other:
        started = time.monotonic()
        while one.send(b"x" * 60_000, timeout_s=0.3):
            assert time.monotonic() - started < 10
        assert one.send(b"x") is False  # and not half a line after half a line


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text(""), os.mkfifo])
def test_no_daemon_is_unreachable(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "s")
    with pytest.raises(DaemonUnreachable) as raised:
        ipc.connect(str(tmp_path / "s"), 1)
    assert raised.value.exit_code == 69


def test_a_path_too_long_for_a_socket_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable):
        ipc.connect(str(tmp_path / ("x" * 200)), 1)
    with pytest.raises(HostError):
        ipc.Server(str(tmp_path / ("x" * 200)))


def test_a_socket_left_by_the_dead_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with ipc.Server(path):
        with pytest.raises(HostError, match="someone else"):
            ipc.Server(path)
        with ipc.connect(path, 1):
            pass
    Path(path).write_text("precious")
    with pytest.raises(HostError, match="not a socket"):
        ipc.Server(path)
    assert Path(path).read_text() == "precious"


def test_a_socket_handed_over_by_systemd_is_taken() -> None:
    here, there = socket.socketpair()
    with ipc.from_fd(here.fileno()) as end:
        here.close()
        there.sendall(b"hello\n")
        assert end.receive(1) == b"hello"
        assert end.peer().uid == os.getuid()
    there.close()
    with Path("/dev/null").open() as null, pytest.raises(HostError):
        ipc.from_fd(null.fileno())


# --- events --------------------------------------------------------------------------------------------------


@pytest.fixture
def events() -> Iterator[RealEvents]:
    watching = RealEvents()
    yield watching
    watching.close()


def test_a_process_that_ends_wakes_within_milliseconds(events: RealEvents) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    events.watch_process(sleeper.pid, "engine:chat")
    assert events.wait(0.05) == []
    threading.Timer(0.2, sleeper.kill).start()
    started = time.monotonic()
    assert events.wait(10) == ["engine:chat"]
    assert time.monotonic() - started < 1
    sleeper.wait()
    assert events.wait(0.05) == []  # told once


def test_a_process_that_is_gone_already_is_told(events: RealEvents) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    events.watch_process(gone.pid, "engine:chat")
    assert events.wait(5) == ["engine:chat"]


def test_what_is_forgotten_is_not_told(events: RealEvents) -> None:
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        events.watch_process(sleeper.pid, "a")
        events.watch_process(sleeper.pid, "a")
        events.watch_process(sleeper.pid, "b")
        events.forget("a")
        sleeper.kill()
        assert events.wait(5) == ["b"]


def test_waking_ends_a_wait_and_waiting_costs_nothing(events: RealEvents) -> None:
    threading.Timer(0.3, events.wake).start()
    started, cpu = time.monotonic(), time.thread_time()
    assert events.wait(10) == []
    assert time.monotonic() - started < 2
    assert time.thread_time() - cpu < 0.02


# --- processes -----------------------------------------------------------------------------------------------


def test_the_real_proc_is_understood(tmp_path: Path) -> None:
    host = real_host()
    odd = tmp_path / "a) (b c"
    odd.symlink_to(sys.executable)
    with subprocess.Popen([odd, "-c", "import time\ntime.sleep(60)", "--api-key", "x"]) as sleeper:
        try:
            time.sleep(0.5)
            (reading,) = process.threads(host, sleeper.pid, only_main=False)
            assert (reading.tid, reading.name, reading.state) == (sleeper.pid, "a) (b c", "S")
            assert reading.cpu_ns > 0
            assert reading.voluntary_switches > 0
            again = process.threads(host, sleeper.pid, only_main=True)[0]
            assert again.cpu_ns == reading.cpu_ns
            assert process.command_line(host, sleeper.pid)[-1] == "x"
            assert not process.core_dumping(host, sleeper.pid)
            assert 0 <= host.clock.now().boot_s - process.started_boot_s(host, sleeper.pid) < 10
            sleeper.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            assert process.threads(host, sleeper.pid, only_main=True)[0].state == "T"
            assert process.kernel_wait(host, sleeper.pid)[0].state == "T"
        finally:
            sleeper.kill()


def test_reading_one_thread_is_cheap() -> None:
    host = real_host()
    before = time.thread_time()
    for _ in range(50):
        process.threads(host, os.getpid(), only_main=True)
    assert (time.thread_time() - before) / 50 < 0.002
