"""The real HTTP client against hostile servers on loopback: silent, dripping, endless, broken."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Unreachable
from agent.host.web import RealHttp
from tests.support.loopback import Serve, answer_with, assert_at_deadline, request


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


def test_an_answer_is_whole_whatever_its_status(serve: Serve) -> None:
    url = serve(answer_with(b'HTTP/1.1 503 Busy\r\nX-A: 1\r\nContent-Length: 14\r\n\r\n{"error": "no"}'[:-1] + b"}"))
    reply = RealHttp()("GET", url + "/health", timeout_s=2)
    assert (reply.status, reply.headers["x-a"]) == (503, "1")
    assert reply.elapsed_s > 0


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
