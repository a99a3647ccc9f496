"""Sockets that know their deadline, and the transport that gives them to requests.

Looking up a name cannot be interrupted (getaddrinfo has no timeout), so it runs aside and is abandoned at the
deadline; one lookup per name at a time, so that a dead resolver cannot pile up threads.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError


class DeadlineSocket(socket.socket):
    """A socket whose every operation ends at `deadline` (monotonic seconds), whatever timeout a library sets."""

    deadline = float("inf")

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """As socket.recv_into."""
        self.arm()
        return super().recv_into(*args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> int:
        """As socket.send."""
        self.arm()
        return super().send(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        """As socket.sendall, which counts its timeout over the whole."""
        self.arm()
        super().sendall(*args, **kwargs)

    def arm(self, at: float | None = None) -> None:
        """Let the next operation end at the deadline, or at `at` when that is sooner. Raises TimeoutError."""
        left = min(self.deadline, self.deadline if at is None else at) - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        self.settimeout(left)


class _TlsSocket(DeadlineSocket, ssl.SSLSocket):
    """The same over TLS."""


class _Connection(HTTPConnection):
    """Connects by the deadline that follows from its connect timeout, which is the whole request's."""

    deadline = float("inf")

    def _new_conn(self) -> socket.socket:
        self.deadline = time.monotonic() + float(self.timeout or 0)
        try:
            return _connect(self.host, self.port or self.default_port, self.deadline)
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "too late") from error
        except OSError as error:
            raise NewConnectionError(self, "no connection") from error


class _TlsConnection(_Connection, HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        super().connect()
        if isinstance(self.sock, _TlsSocket):
            self.sock.deadline = self.deadline


class _Pool(HTTPConnectionPool):
    """Keeps nothing: every connection is closed after its request."""

    ConnectionCls = _Connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.close()
        super()._put_conn(conn)


class _TlsPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class DeadlineAdapter(HTTPAdapter):
    """requests' transport with these sockets and the system's CA store."""

    def __init__(self, ca_bundle: str) -> None:
        self._ca_bundle = ca_bundle
        self._context: ssl.SSLContext | None = None
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        """Called by requests once: the pools make our connections."""
        self.poolmanager = PoolManager(num_pools=connections, maxsize=maxsize, block=block, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Called by requests for each request: the TLS context, made once, because reading the store is slow."""
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        if host["scheme"] == "https":
            pool["ssl_context"] = self._tls()
        return host, pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Called by requests to point a pool at certifi's store; ours has the system's already."""

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self._ca_bundle)
            self._context.sslsocket_class = _TlsSocket
        return self._context


def _connect(host: str, port: int, deadline: float) -> DeadlineSocket:
    """A connection to the first address that takes one. Each address gets its share of the time that is left."""
    addresses = _addresses(host.strip("[]"), port, deadline)
    trouble: OSError = OSError("there is no address to connect to")
    for tried, (family, kind, protocol, address) in enumerate(addresses):
        now = time.monotonic()
        connection = DeadlineSocket(family, kind, protocol)
        connection.deadline = deadline
        try:
            connection.arm(now + (deadline - now) / (len(addresses) - tried))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect(address)
            connection.arm()  # the TLS handshake takes this as its limit
        except OSError as error:
            connection.close()
            trouble = error
        else:
            return connection
    raise trouble


_Address = tuple[socket.AddressFamily, socket.SocketKind, int, Any]
_lookups: dict[tuple[str, int], _Lookup] = {}
_lookups_lock = threading.Lock()


class _Lookup:
    """One name lookup in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        self.done = threading.Event()
        self.addresses: list[_Address] = []
        self.trouble: OSError | None = None
        threading.Thread(target=self._look, args=(host, port), name="holdfast-lookup", daemon=True).start()

    def _look(self, host: str, port: int) -> None:
        try:
            self.addresses = _look_up(host, port)
        except OSError as error:
            self.trouble = error
        except UnicodeError:  # a label that cannot be a host name
            self.trouble = socket.gaierror(socket.EAI_NONAME, "not a host name")
        finally:
            with _lookups_lock:
                _lookups.pop((host, port), None)
            self.done.set()


def _addresses(host: str, port: int, deadline: float) -> list[_Address]:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return _look_up(host, port, socket.AI_NUMERICHOST)
    with _lookups_lock:
        lookup = _lookups.get((host, port))
        if lookup is None:
            lookup = _lookups[host, port] = _Lookup(host, port)
    if not lookup.done.wait(max(0.0, deadline - time.monotonic())):
        raise socket.gaierror(socket.EAI_AGAIN, "the name was not resolved in time")
    if lookup.trouble is not None:
        raise lookup.trouble
    return lookup.addresses


def _look_up(host: str, port: int, flags: int = 0) -> list[_Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, kind, protocol, address) for family, kind, protocol, _, address in found]
