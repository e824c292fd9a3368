"""What one key may use: requests and tokens a minute, bytes kept, jobs at a time.

Not here: who asks (serve.access), the keys (serve.records.keys). Times are monotonic, so that a clock that is set
moves no limit. `admit` is called by every route that is not public (serve.route), the others by what spends.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from tunesmith.serve.access import Identity
from tunesmith.serve.records.files import stored_bytes
from tunesmith.serve.records.uploads import part_bytes
from tunesmith.serve.wire.errors import RequestError

Clock = Callable[[], float]
JOBS_WAIT_S = 60


@dataclass(slots=True)
class Bucket:
    """As many units as a minute brings, refilled evenly. What is known only afterwards may overdraw it."""

    per_minute: int
    now: float
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = float(self.per_minute)

    def fill(self, now: float) -> None:
        self.level = min(self.per_minute, self.level + (now - self.now) * self.per_minute / 60)
        self.now = now

    def wait_s(self, units: float) -> float:
        """How long until it holds so many units."""
        return max(0.0, units - self.level) * 60 / self.per_minute


class RateLimits:
    """The buckets of every key that has limits; in memory, for one process answers."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str | None, str, int], Bucket] = {}

    def admit(self, identity: Identity) -> dict[str, str]:
        """Count one request. Gives OpenAI's `x-ratelimit-*` headers for its answer; raises RequestError (429)."""
        with self._lock:
            requests = self._bucket(identity, "requests", identity.limits.requests_per_minute)
            tokens = self._bucket(identity, "tokens", identity.limits.tokens_per_minute)
            if requests and requests.level < 1:
                raise too_many(f"requests ({requests.per_minute} a minute)", requests.wait_s(1))
            if tokens and tokens.level < 1:
                raise too_many(f"tokens ({tokens.per_minute} a minute)", tokens.wait_s(1))
            if requests:
                requests.level -= 1
            return _headers("requests", requests) | _headers("tokens", tokens)

    def spend_tokens(self, identity: Identity, tokens: int) -> None:
        """Count what a request has used, prompt and reply, once it is known."""
        with self._lock:
            if bucket := self._bucket(identity, "tokens", identity.limits.tokens_per_minute):
                bucket.level -= tokens

    def _bucket(self, identity: Identity, kind: str, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        now, key = self._clock(), (identity.key_id, kind, per_minute)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(per_minute, now)
        bucket.fill(now)
        return bucket


def too_many(what: str, wait_s: float) -> RequestError:
    """429, and when to come again; OpenAI's clients wait for it by themselves."""
    headers = {"retry-after": str(max(1, math.ceil(wait_s))), "retry-after-ms": str(max(1, math.ceil(wait_s * 1000)))}
    message = f"Too many {what}. Ask again in {max(1, math.ceil(wait_s))} s."
    return RequestError(message, code="rate_limit_exceeded", status=429, headers=headers)


def refuse_over_storage(identity: Identity, more_bytes: int, *, connection: Connection) -> None:
    """Raises RequestError (403) when this many more bytes are beyond the key's storage. In the transaction that
    enters them, or a parallel one might pass as well."""
    limit = identity.limits.storage_bytes
    if limit is None:
        return
    stored = stored_bytes(connection, identity.owner) + part_bytes(connection, identity.owner)
    if stored + more_bytes > limit:
        message = (
            f"{stored:,} bytes are stored; {more_bytes:,} more are beyond this key's {limit:,}. Delete some files."
        )
        raise RequestError(message, code="storage_limit_exceeded", status=403)


def refuse_over_jobs(identity: Identity, active: int) -> None:
    """Raises RequestError (429) when the owner has `active` jobs that have not ended and the key allows no more."""
    limit = identity.limits.jobs
    if limit is not None and active >= limit:
        raise too_many(f"jobs ({limit} at a time)", JOBS_WAIT_S)


def _headers(kind: str, bucket: Bucket | None) -> dict[str, str]:
    if bucket is None:
        return {}
    return {
        f"x-ratelimit-limit-{kind}": str(bucket.per_minute),
        f"x-ratelimit-remaining-{kind}": str(max(0, math.floor(bucket.level))),
        f"x-ratelimit-reset-{kind}": _duration(bucket.wait_s(bucket.per_minute)),
    }


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.5s, 17ms."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}m{round(rest)}s" if minutes else f"{rest:g}s"
