"""Webhook events that wait to be taken: written in the transaction of what they tell of, kept until they are delivered.

Not here: sending them (serve.webhooks). While nobody listens nothing is written. An event's id is made of what it
tells, so that it is the same at every try, and a receiver can tell a second delivery from a second event.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Index, Integer, String, Table, UniqueConstraint, select
from sqlalchemy.exc import IntegrityError

from tunesmith.database import METADATA, transaction

FAR_S = 172_800  # no try is put off for so long: the clock was set back meanwhile

LISTENERS = Table("webhook_listener", METADATA, Column("url", String, primary_key=True))
OUTBOX = Table(
    "webhook_event",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False),
    Column("url", String, nullable=False),
    Column("created", Integer, nullable=False),  # seconds since 1970
    Column("kind", String, nullable=False),
    Column("about", String, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("due", Integer, nullable=False),  # seconds since 1970: no try before
    UniqueConstraint("id", "url"),
    Index("webhook_event_due", "due"),
)


@dataclass(frozen=True, slots=True)
class Event:
    id: str
    created: int
    kind: str  # eval.run.succeeded, fine_tuning.job.failed, ...
    about: str  # the object's id

    @property
    def body(self) -> bytes:
        data = {"id": self.about}
        return json.dumps(
            {"id": self.id, "object": "event", "created_at": self.created, "type": self.kind, "data": data}
        ).encode()


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event for one address; `tries` counts the one that is to be made now."""

    number: int
    url: str
    tries: int
    event: Event


def listen(urls: Sequence[str]) -> None:
    """From now on events are kept for these addresses; what waits for others is dropped."""
    try:
        _listen(urls)
    except IntegrityError:  # another server began at the same moment
        _listen(urls)


def _listen(urls: Sequence[str]) -> None:
    with transaction() as connection:
        connection.execute(LISTENERS.delete())
        connection.execute(OUTBOX.delete().where(OUTBOX.c.url.not_in(urls)))
        if urls:
            connection.execute(LISTENERS.insert(), [{"url": url} for url in dict.fromkeys(urls)])


def announce(connection: Connection, kind: str, *, about: str) -> None:
    """Tell all who listen, in the caller's transaction, which brings about what is told, once."""
    now, id = int(time.time()), f"evt_{hashlib.sha256(f'{kind} {about}'.encode()).hexdigest()[:24]}"
    values = {"id": id, "created": now, "kind": kind, "about": about, "tries": 0, "due": now}
    urls = connection.execute(select(LISTENERS.c.url)).scalars().all()
    if urls:
        connection.execute(OUTBOX.insert(), [values | {"url": url} for url in urls])


def take(*, lease_s: int) -> Waiting | None:
    """The next event whose time has come, new ones first; None where there is none. Nobody else takes it for as long as
    the lease, and then only if it has neither been dropped nor put off."""
    now = int(time.time())
    later = OUTBOX.c.due.between(now + 1, now + FAR_S)
    first = select(OUTBOX).where(~later).order_by(OUTBOX.c.tries, OUTBOX.c.number).limit(1)
    with transaction() as connection:
        row = connection.execute(first.with_for_update(skip_locked=True)).mappings().first()
        if row is None:
            return None
        tries = int(row["tries"]) + 1
        mine = OUTBOX.update().where(OUTBOX.c.number == row["number"])
        connection.execute(mine.values(tries=tries, due=now + lease_s))
    event = Event(row["id"], row["created"], row["kind"], row["about"])
    return Waiting(row["number"], row["url"], tries, event)


def drop(waiting: Waiting) -> None:
    """It was delivered, or given up."""
    with transaction() as connection:
        connection.execute(OUTBOX.delete().where(OUTBOX.c.number == waiting.number))


def put_off(waiting: Waiting, *, pause_s: int) -> None:
    with transaction() as connection:
        mine = OUTBOX.update().where(OUTBOX.c.number == waiting.number)
        connection.execute(mine.values(due=int(time.time()) + pause_s))
