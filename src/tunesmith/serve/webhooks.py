"""Webhooks: what happened to a job or an eval run, posted to addresses that the administrator named.

Not here: what happens and what waits (serve.records.outbox). No user can name an address. https only; a host's name is
resolved once per try and that very address is connected to; redirects are not followed and answers not read. Signed as
OpenAI signs (standard-webhooks), so that `client.webhooks.unwrap` takes it. Called by cli.server.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import ipaddress
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from tunesmith.errors import DatabaseError, InputError
from tunesmith.serve.records import outbox
from tunesmith.serve.records.outbox import Event, Waiting

LOG = logging.getLogger("tunesmith.serve")
TIMEOUT_S = 10
PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)  # before the second and further tries: 3 days
LEASE_S = 60  # of a try, among servers that share the database
LOOK_S = 2.0  # how often the database is looked at when nothing waits
SECRET_PREFIX = "whsec_"
TODO = "Write https://HOST/PATH, without a user or a fragment."


@dataclass(frozen=True, slots=True)
class Address:
    """Where events are posted: a parsed URL that nothing else parses again."""

    host: str
    port: int
    target: str  # path and query


class Webhooks:
    """One thread posts the events that wait, each to every address, until they are taken or three days are over."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        secret: str,
        inside: bool = False,
        pauses_s: Sequence[int] = PAUSES_S,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`inside`: receivers may lie in this machine's own networks. Raises InputError for a bad URL or secret."""
        self.addresses = {url: parse_address(url) for url in urls}
        self.key = parse_secret(secret)
        self.inside = inside
        self.pauses_s = pauses_s
        self.context = context or ssl.create_default_context()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tunesmith-webhooks", daemon=True)

    def start(self) -> None:
        """Events that wait since an earlier process are sent, too."""
        outbox.listen(list(self.addresses))
        self._thread.start()

    def stop(self) -> None:
        """Events that wait are sent after the next start."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                waiting = outbox.take(lease_s=LEASE_S)
                if waiting is not None and waiting.url in self.addresses:
                    self._deliver(waiting, self.addresses[waiting.url])
            except DatabaseError as error:
                LOG.error("webhook events could not be read: %s", error.message)
                waiting = None
            if waiting is None:
                self._stopping.wait(LOOK_S)

    def _deliver(self, waiting: Waiting, address: Address) -> None:
        """One try."""
        event = waiting.event
        try:
            status = post(event, address, key=self.key, inside=self.inside, context=self.context)
            if 200 <= status < 300:
                outbox.drop(waiting)
                return
            why = f"status {status}"
        except (OSError, http.client.HTTPException, InputError) as error:
            why = type(error).__name__
        if waiting.tries <= len(self.pauses_s):
            outbox.put_off(waiting, pause_s=self.pauses_s[waiting.tries - 1])
            return
        LOG.warning("webhook %s (%s) was not taken by %s: %s", event.id, event.kind, address.host, why)
        outbox.drop(waiting)


def parse_address(url: str) -> Address:
    """Raises InputError for anything but a plain https URL of a host by name or number."""
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError as error:
        raise InputError(f"The webhook {url!r} cannot be read: {error}.", TODO) from error
    host = (parts.hostname or "").rstrip(".")
    odd = not url.isascii() or not url.isprintable() or any(sign in url for sign in "\\ @#")
    if parts.scheme != "https" or not host or odd:
        raise InputError(f"The webhook {url!r} is not taken.", TODO)
    if not all(part and not part.startswith("-") for part in host.split(".")) and ":" not in host:
        raise InputError(f"The webhook {url!r} has no proper host.", TODO)
    return Address(host.lower(), port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def parse_secret(secret: str) -> bytes:
    """`whsec_` and base64 of 24 bytes or more, as OpenAI's clients read it."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if len(key) < 24:
        example = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
        raise InputError("The webhooks' secret is no base64 of 24 bytes or more.", f"A fresh one: {example}")
    return key


def signature(event: Event, *, key: bytes, sent: int) -> dict[str, str]:
    """The three headers of https://www.standardwebhooks.com."""
    signed = b".".join((event.id.encode(), str(sent).encode(), event.body))
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {"webhook-id": event.id, "webhook-timestamp": str(sent), "webhook-signature": f"v1,{digest}"}


def resolve(address: Address, *, inside: bool, look_up: Callable[..., list[tuple[object, ...]]] | None = None) -> str:
    """The address to connect to. Raises InputError when the host has one that is not of the open internet, unless
    `inside`: one such among others is how a name is pointed at a machine's own services."""
    found = (look_up or socket.getaddrinfo)(address.host, address.port, type=socket.SOCK_STREAM)
    numbers = [str(entry[4][0]) for entry in found]  # type: ignore[index]
    if not inside and not all(is_outside(number) for number in numbers):
        raise InputError(
            f"The webhook host {address.host} lies inside this network.", "Allow it with --webhook-inside."
        )
    return numbers[0]


def is_outside(number: str) -> bool:
    """Whether an IP address is one of the open internet, also where an IPv4 address hides in it."""
    found = ipaddress.ip_address(number.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        hidden = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if hidden is None and found in ipaddress.ip_network("64:ff9b::/96"):
            hidden = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if hidden is not None:
            return is_outside(str(hidden))
        if found.is_site_local:
            return False
    return found.is_global and not found.is_multicast


def post(event: Event, address: Address, *, key: bytes, inside: bool, context: ssl.SSLContext) -> int:
    """The status of the answer; its body is not read. Raises OSError, HTTPException or InputError."""
    number = resolve(address, inside=inside)
    headers = {"content-type": "application/json", "user-agent": "tunesmith"}
    connection = _Connection(address, number, context)
    try:
        sent = int(time.time())
        connection.request("POST", address.target, event.body, headers | signature(event, key=key, sent=sent))
        return connection.getresponse().status
    finally:
        connection.close()


class _Connection(http.client.HTTPSConnection):
    """To an address that was looked at, while name and certificate are those of the host."""

    def __init__(self, address: Address, number: str, context: ssl.SSLContext) -> None:
        super().__init__(address.host, address.port, timeout=TIMEOUT_S, context=context)
        self.number = number
        self.tls = context

    def connect(self) -> None:
        plain = socket.create_connection((self.number, self.port), self.timeout)
        self.sock = self.tls.wrap_socket(plain, server_hostname=self.host)
