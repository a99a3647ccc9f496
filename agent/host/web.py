"""HTTP with a total deadline and a size cap, so that no server can hold or flood its prober.

`requests` bounds the wait for each byte, never the whole: a server that drips one byte per second would hold a probe
for ever. Here the sockets themselves know the deadline (`agent.host.deadline`), so connecting, TLS, headers and body
share it without a timer thread. Every request has its own connection, closed at its end: an idle one would keep a
worker thread of some engines busy, and a kept one that the server closed would look like a fault.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agent.errors import Unreachable
from agent.host import Reply
from agent.model import Json

if TYPE_CHECKING:
    from requests import Response, Session

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
"""The system's CA store on Debian and Ubuntu (package ca-certificates)."""
_CHUNK = 1 << 16
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib.decompressobj: 31 expects a gzip header


class RealHttp:
    """The `Http` primitive. Each thread has its own session, because requests' are not made for sharing."""

    def __init__(self, ca_bundle: str = CA_BUNDLE) -> None:
        self._ca_bundle = ca_bundle
        self._own = threading.local()

    def __call__(
        self,
        method: str,
        url: str,
        *,
        timeout_s: float,
        json: Json = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = 1 << 20,
    ) -> Reply:
        """One request; any complete answer is a Reply, whatever its status; redirects are not followed.

        timeout_s: from now to the last byte in, name lookup included. limit: bytes of body, also once decompressed.
        Raises Unreachable; its words name only the server, because paths and queries may hold secrets.
        """
        started = time.monotonic()
        try:
            response = self._session().request(
                method,
                url,
                json=json,
                data=body,
                headers=dict(headers or {}),
                timeout=timeout_s,
                allow_redirects=False,
                stream=True,
            )
            try:
                content = _body(response, limit)
                names = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status_code, content, names, time.monotonic() - started)
            finally:
                response.close()
        except _TooLargeError:
            raise Unreachable(
                f"{_server(url)} sent more than {limit} bytes", kind="too-large", where=_server(url)
            ) from None
        except Exception as error:  # noqa: BLE001 - whatever the wire did, it is one kind of Unreachable
            late = time.monotonic() - started >= timeout_s
            # `from None`: the library's exceptions quote the whole address.
            raise _unreachable(error, _server(url), timeout_s, late=late) from None

    def _session(self) -> Session:
        session: Session | None = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = _new_session(self._ca_bundle)
        return session


class _TooLargeError(Exception):
    """The body went over the limit."""


def _new_session(ca_bundle: str) -> Session:
    from http.cookiejar import DefaultCookiePolicy  # noqa: PLC0415 - with requests, only where something is fetched

    import requests  # noqa: PLC0415 - 10 MiB and 0.1 s that the apt guard and the runner's refusals do not need

    from agent.host.deadline import DeadlineAdapter  # noqa: PLC0415 - see above

    logging.getLogger("urllib3").setLevel(logging.WARNING)  # its debug lines hold whole addresses
    session = requests.Session()
    session.trust_env = False  # no proxy variables, no .netrc, no REQUESTS_CA_BUNDLE
    session.headers.clear()
    session.headers.update(
        {"User-Agent": "holdfast", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    )
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, DeadlineAdapter(ca_bundle))
    return session


def _body(response: Response, limit: int) -> bytes:
    """The body, at most `limit` bytes on the wire and decompressed."""
    found = bytearray()
    while chunk := response.raw.read(min(_CHUNK, limit + 1 - len(found)), decode_content=False):
        found += chunk
        if len(found) > limit:
            raise _TooLargeError
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding in ("", "identity") or not found:
        return bytes(found)
    if coding not in _WINDOW_BITS:
        raise OSError(errno.EPROTO, f"it answered in the coding {coding!r}, which was not asked for")
    unpacked = zlib.decompressobj(_WINDOW_BITS[coding])
    plain = unpacked.decompress(bytes(found), limit + 1)
    if len(plain) > limit:
        raise _TooLargeError
    if not unpacked.eof:
        raise OSError(errno.EPROTO, "its compressed answer is torn")
    return plain


def _server(url: str) -> str:
    """Scheme, host and port of an address: what may be shown of it."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "?"
        return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "the server"


def _unreachable(error: Exception, server: str, timeout_s: float, *, late: bool) -> Unreachable:
    from socket import gaierror  # noqa: PLC0415 - loaded by requests by now

    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError  # noqa: PLC0415 - loaded by requests by now

    causes = list(_causes(error))
    unsent = any(isinstance(cause, (ConnectTimeoutError, NewConnectionError)) for cause in causes)
    if any(isinstance(cause, gaierror) for cause in causes):  # however long it took: the server was never asked
        return Unreachable(f"{server}: its name could not be resolved", kind="broken", where=server, unsent=True)
    if late or any(isinstance(cause, TimeoutError) for cause in causes):
        words = f"{server} gave no complete answer within {timeout_s:g} s"
        return Unreachable(words, kind="timeout", where=server, unsent=unsent)
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return Unreachable(f"{server} refused the connection", kind="refused", where=server)
    return Unreachable(f"{server}: {_words(causes)}", kind="broken", where=server, unsent=unsent)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it came from, outermost first. requests and urllib3 hide causes in three places."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]


def _words(causes: list[BaseException]) -> str:
    """What happened, from the operating system or the name of the error; never the library's own text."""
    import ssl  # noqa: PLC0415 - loaded by requests at this point

    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate was not accepted: {cause.verify_message}"
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {cause.reason or 'broken'}"
        if isinstance(cause, OSError) and cause.errno:
            return str(cause.strerror if cause.errno == errno.EPROTO else os.strerror(cause.errno))
    return f"no valid HTTP answer ({type(causes[-1]).__name__})"
