"""Who is asking, and what they may do: identities, permissions, and the two kinds of server without a list of keys.

Not here: the list of keys (serve.records.keys), the answer to a stranger (serve.gate). A route names its permission
(serve.route); what an identity lacks is 403, and what belongs to another owner is 404, as if it were not there.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from typing import Literal, Protocol, get_args
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from tunesmith.serve.wire.errors import RequestError

Permission = Literal[
    "public",  # anyone, also without a key
    "models.read", "models.write", "inference", "files.read", "files.write", "jobs.read", "jobs.write",
    "evals.read", "evals.write", "completions.read", "completions.write", "metrics.read",
]  # fmt: skip
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
LOCAL_OWNER = "local"
API_KEY_VARIABLE = "TUNESMITH_API_KEY"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use (serve.limits); None: as much as there is."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    storage_bytes: int | None = None  # of all that its owner keeps
    jobs: int | None = None  # of its owner, that have not ended


UNLIMITED = KeyLimits()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: every object made belongs to `owner`, and only the owner's are seen. `key_id` None: no key."""

    owner: str
    permissions: frozenset[Permission]
    key_id: str | None = None
    limits: KeyLimits = UNLIMITED


class Access(Protocol):
    def identify(self, headers: Headers) -> Identity | RequestError:
        """Who asks, or why they are refused on every route that is not public."""
        ...


LOCAL = Identity(LOCAL_OWNER, frozenset(PERMISSIONS))


class OnlyThisMachine:
    """No keys: only this machine may ask. A Host or Origin of another name is a web page reaching for a local server
    (DNS rebinding)."""

    def identify(self, headers: Headers) -> Identity | RequestError:
        origin = headers.get("origin")
        if is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname) and (
            origin is None or is_loopback(urlsplit(origin).hostname)
        ):
            return LOCAL
        return RequestError("Without an API key only this machine is answered.", code="forbidden_host", status=403)


class OneKey:
    """One key for everything: whoever has it is this machine's owner."""

    def __init__(self, key: str) -> None:
        self.key = key.encode()

    def identify(self, headers: Headers) -> Identity | RequestError:
        if hmac.compare_digest(bearer_of(headers).encode(), self.key):
            return LOCAL
        return wrong_key()


def wrong_key() -> RequestError:
    return RequestError("The API key is missing or wrong.", code="invalid_api_key", status=401)


def bearer_of(headers: Headers) -> str:
    """The key of `Authorization: Bearer KEY`; empty when there is none."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if kind.lower() == "bearer" else ""


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address is this machine's own."""
    if host is None or host.lower() == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
