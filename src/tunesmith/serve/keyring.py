"""The list of keys as the server asks it: in memory, fresh within POLL_S also when another process revokes a key.

Not here: keys in the database (serve.records.keys), permissions (serve.access). No request waits for the database
here. As long as no key was ever made the server answers as it does without a list.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers

from tunesmith.errors import TunesmithError
from tunesmith.serve.access import Access, Identity, OneKey, bearer_of, wrong_key
from tunesmith.serve.limits import Bucket, Clock, too_many
from tunesmith.serve.records.keys import StoredKey, list_keys, parse_key, sha256_of
from tunesmith.serve.wire.errors import RequestError

LOG = logging.getLogger("tunesmith.serve")
POLL_S = 0.4
WRONG_PER_MINUTE = 600  # of all clients together; beyond them 429, which costs less to answer than to ask


class StoredKeys(Access):
    """`otherwise` answers while no key was ever made; if it is TUNESMITH_API_KEY, that stays good beside them."""

    def __init__(self, otherwise: Access, *, clock: Clock = time.monotonic) -> None:
        self._otherwise = otherwise
        self._clock = clock
        self._keys: dict[str, StoredKey] = {}
        self._asks = False  # once a key was seen there is no way back
        self._wrong = Bucket(WRONG_PER_MINUTE, clock())
        self._lock = threading.Lock()

    @contextmanager
    def following(self) -> Iterator[StoredKeys]:
        """Read the list, and again every POLL_S until the end of the block."""
        self.refresh()
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(POLL_S):
                try:
                    self.refresh()
                except (TunesmithError, OSError) as error:  # those known stay good until it can be read again
                    LOG.warning("the list of keys cannot be read just now: %s", type(error).__name__)

        thread = threading.Thread(target=follow, name="tunesmith-keys", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()

    def refresh(self) -> None:
        self._keys = {key.id: key for key in list_keys()}
        self._asks = self._asks or bool(self._keys)

    def identify(self, headers: Headers) -> Identity | RequestError:
        given = bearer_of(headers)
        key = self._keys.get(parse_key(given) or "")
        if key and hmac.compare_digest(key.sha256, sha256_of(given)) and key.state == "valid":
            return Identity(key.owner, key.permissions, key.id, key.limits)
        if not self._asks or isinstance(self._otherwise, OneKey):
            found = self._otherwise.identify(headers)
            if isinstance(found, Identity) or found.status != 401:
                return found
        return self._refuse()

    def _refuse(self) -> RequestError:
        """The same for a wrong, an expired and a revoked key; a flood of them does not touch the right ones."""
        with self._lock:
            self._wrong.fill(self._clock())
            if self._wrong.level < 1:
                return too_many("wrong API keys", self._wrong.wait_s(1))
            self._wrong.level -= 1
        return wrong_key()
