"""Any HTTP address, with a body of your own and a signature.

The body is a Jinja2 template (sandboxed, unknown names are errors) that sees the fields of one alert: `id`, `key`,
`action` (trigger, acknowledge, resolve, event), `urgency` (info, warning, critical), `title`, `body`, `source`,
`subject`, `finding`, `at`, `since` (Unix seconds), `at_iso`, `since_iso` and `details`. Write values with the
filter `tojson`; where the content type is JSON, the result must be JSON. Without a template the body is all of
these as one JSON object, with `"schema": "holdfast-alert/1"`.

With `secret_file` every request carries `X-Holdfast-Timestamp` (Unix seconds) and
`X-Holdfast-Signature: sha256=HEX`, HMAC-SHA256 with the secret over timestamp, a full stop and the body.
Any 2xx is success; 429, 5xx and the network are tried again; other client errors are final. A missing secret or a
broken template can be mended, so the alert waits.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import datetime, timezone

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, field_validator, model_validator

from agent.errors import FileTrouble
from agent.host import Host
from agent.model import Alert, Delivery, Json, Urgency
from agent.pager.receivers._http import post, refused, secret
from agent.plugin import Receiver, ReceiverSettings

MAX_TEMPLATE = 64 << 10
_RESERVED = ("content-type", "content-length", "host", "x-holdfast-timestamp", "x-holdfast-signature")
_EXAMPLE = Alert(
    id="example",
    key="holdfast/00000000/engine-wedged/engine:chat",
    action="trigger",
    urgency=Urgency.CRITICAL,
    title="Engine wedged: chat on gpu1",
    body="example",
    source="gpu1",
    subject="engine:chat",
    finding="engine-wedged",
    at=0.0,
    since=0.0,
)

DEFAULT_TEMPLATE = """{"schema": "holdfast-alert/1",
 "id": {{ id | tojson }}, "key": {{ key | tojson }}, "action": {{ action | tojson }},
 "urgency": {{ urgency | tojson }}, "title": {{ title | tojson }}, "body": {{ body | tojson }},
 "source": {{ source | tojson }}, "subject": {{ subject | tojson }}, "finding": {{ finding | tojson }},
 "at": {{ at_iso | tojson }}, "since": {{ since_iso | tojson }}, "details": {{ details | tojson }}}
"""


class WebhookSettings(ReceiverSettings):
    """`[[receiver]]` with kind = "webhook"."""

    url: str = Field(pattern=r"^https?://.+")
    """Where to POST."""
    template: str | None = Field(default=None, max_length=MAX_TEMPLATE)
    """The body, written here."""
    template_file: str | None = Field(default=None, pattern=r"^/.+")
    """The body, in a file; read for every page."""
    content_type: str = Field(default="application/json", pattern=r"^[\x21-\x7e]+/[\x20-\x7e]+$")
    """The body's type."""
    headers: dict[str, str] = Field(default_factory=dict)
    """More headers, as they are."""
    header_files: dict[str, str] = Field(default_factory=dict)
    """More headers, each with a file that holds its value (a token)."""
    secret_file: str | None = Field(default=None, pattern=r"^/.+")
    """A file that holds the key of the signature; without it nothing is signed."""

    @field_validator("template")
    @classmethod
    def _renders(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                render(value, _EXAMPLE)
            except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError, AttributeError) as error:
                raise ValueError(f"does not render: {error}") from None
        return value

    @field_validator("headers", "header_files")
    @classmethod
    def _plain_headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"{name!r} is not a header's name")
            if name.lower() in _RESERVED:
                raise ValueError(f"{name!r} is set by Holdfast")
            if not text.isprintable() or not text.isascii():
                raise ValueError(f"{name!r} has a value with control or non-ASCII characters")
        return value

    @model_validator(mode="after")
    def _one_template(self) -> WebhookSettings:
        if self.template is not None and self.template_file is not None:
            raise ValueError("template and template_file exclude each other")
        return self


def send(host: Host, settings: WebhookSettings, alert: Alert) -> Delivery:
    """Send one alert."""
    body = _body(host, settings, alert)
    if isinstance(body, Delivery):
        return body
    headers = {"Content-Type": settings.content_type, **settings.headers}
    for name, path in settings.header_files.items():
        value = secret(host, path)
        if isinstance(value, Delivery):
            return value
        headers[name] = value
    if settings.secret_file is not None:
        key = secret(host, settings.secret_file)
        if isinstance(key, Delivery):
            return key
        timestamp = str(int(host.clock.now().wall))
        headers["X-Holdfast-Timestamp"] = timestamp
        headers["X-Holdfast-Signature"] = signature(key, timestamp, body)
    reply = post(host, settings.url, body, headers)
    if isinstance(reply, Delivery):
        return reply
    return Delivery.sent() if 200 <= reply.status < 300 else refused(host, reply)


def signature(key: str, timestamp: str, body: bytes) -> str:
    """The signature's header value."""
    digest = hmac.new(key.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={digest.hexdigest()}"


def render(template: str, alert: Alert) -> str:
    """The body. Raises jinja2's TemplateError and whatever an expression in the template raises."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    return environment.from_string(template).render(fields(alert))


def fields(alert: Alert) -> dict[str, Json]:
    """What a template sees."""
    return {
        "id": alert.id,
        "key": alert.key,
        "action": alert.action,
        "urgency": alert.urgency.value,
        "title": alert.title,
        "body": alert.body,
        "source": alert.source,
        "subject": alert.subject,
        "finding": alert.finding,
        "at": alert.at,
        "since": alert.since,
        "at_iso": _iso(alert.at),
        "since_iso": _iso(alert.since),
        "details": dict(alert.details),
    }


def _body(host: Host, settings: WebhookSettings, alert: Alert) -> bytes | Delivery:
    template = settings.template or DEFAULT_TEMPLATE
    if settings.template_file is not None:
        try:
            template = host.files.read_text(settings.template_file, MAX_TEMPLATE)
        except FileTrouble as error:
            return Delivery.retry(f"{settings.template_file}: {error.kind}")
    try:
        text = render(template, alert)
    except Exception as error:  # noqa: BLE001 - a template may fail in any way; it is a person's to mend
        return Delivery.retry(f"the template does not render: {type(error).__name__}")
    if "json" in settings.content_type:
        try:
            json.loads(text)
        except ValueError:
            return Delivery.retry("the template does not yield JSON")
    return text.encode()


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


RECEIVER = Receiver(kind="webhook", settings=WebhookSettings, send=send)
