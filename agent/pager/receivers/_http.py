"""What an HTTP answer means for a delivery, the same for every receiver."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime

from agent.errors import FileTrouble, Unreachable
from agent.host import Host, Reply
from agent.model import Delivery

TIMEOUT_S = 10.0
"""How long one delivery may take in all, seconds."""
RETRY_STATUSES = frozenset({408, 425, 429})
"""Client errors that say "later", not "never"."""
UNCERTAIN_STATUSES = frozenset({408, 502, 504})
"""Someone in between gave up waiting: the receiver itself may have taken it."""


def post(host: Host, url: str, body: bytes, headers: Mapping[str, str]) -> Reply | Delivery:
    """Send one POST. A Delivery is returned when no complete answer came."""
    try:
        return host.http("POST", url, timeout_s=TIMEOUT_S, body=body, headers=headers, limit=64 << 10)
    except Unreachable as error:
        return Delivery.retry(error.message, uncertain=not error.unsent)


def refused(host: Host, reply: Reply) -> Delivery:
    """What an answer that is not a success means.

    429 and 5xx: later. Another 4xx: never in this form. 3xx and odd ones: later, because that is not the receiver
    speaking (a captive portal, a proxy). Its words are not kept: they may quote the request.
    """
    reason = f"answered {reply.status}"
    if 400 <= reply.status < 500 and reply.status not in RETRY_STATUSES:
        return Delivery.permanent(reason)
    return Delivery.retry(reason, retry_after_s(host, reply), uncertain=reply.status in UNCERTAIN_STATUSES)


def retry_after_s(host: Host, reply: Reply) -> float | None:
    """The wait that Retry-After asks for, seconds: a number or a date (RFC 9110 10.2.3); None without a valid one."""
    value = reply.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    if not value:
        return None
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, date.timestamp() - host.clock.now().wall)


def secret(host: Host, path: str) -> str | Delivery:
    """The one line in a secret's file. A file that is missing or empty may be mended, so the alert waits for it."""
    try:
        text = host.files.read_text(path, 64 << 10).strip()
    except FileTrouble as error:
        return Delivery.retry(f"{path}: {error.kind}")
    if not text:
        return Delivery.retry(f"{path} is empty")
    if not text.isprintable():
        return Delivery.retry(f"{path} holds more than one line")
    return text
