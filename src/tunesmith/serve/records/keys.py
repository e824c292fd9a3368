"""API keys: whose, for what, until when, how much. Of a key only its sha256 is kept; the key is shown once.

Not here: asking a request for its key (serve.keyring), counting (serve.limits). A revoked key keeps its row: a server
that has seen a key never goes back to answering without one. Called by the command `keys`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import BigInteger, Column, Integer, String, Table, select, update

from tunesmith.database import METADATA, transaction
from tunesmith.errors import InputError, did_you_mean
from tunesmith.serve.access import PERMISSIONS, UNLIMITED, KeyLimits, Permission

KEY = re.compile(r"tsk-([0-9a-f]{12})-[0-9a-f]{64}-[0-9a-f]{8}")
SCOPES = ("all", "read", *PERMISSIONS[1:])  # without "public", which needs no key

KEYS = Table(
    "api_key",
    METADATA,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("name", String, nullable=False),
    Column("sha256", String, nullable=False),  # of the whole key
    Column("scopes", String, nullable=False),  # separated by spaces
    Column("created", Integer, nullable=False),  # seconds since 1970
    Column("expires", Integer),
    Column("revoked", Integer),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("storage_bytes", BigInteger),
    Column("jobs", Integer),
)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A row of the table; `permissions` are what its scopes mean in this version."""

    id: str
    owner: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    created: int
    expires: int | None
    revoked: int | None
    limits: KeyLimits

    @property
    def permissions(self) -> frozenset[Permission]:
        return frozenset(name for name in PERMISSIONS if any(_covers(scope, name) for scope in self.scopes))

    @property
    def state(self) -> str:
        """valid, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if self.expires is None or time.time() < self.expires else "expired"


def create_key(
    *,
    owner: str,
    name: str,
    scopes: Sequence[str] = ("all",),
    life_s: int | None = None,
    limits: KeyLimits = UNLIMITED,
) -> tuple[str, StoredKey]:
    """The key, which cannot be had again, and what is kept of it. Raises InputError for a scope there is not."""
    for scope in scopes:
        if scope not in SCOPES:
            raise InputError(f"There is no scope {scope!r}.", did_you_mean(scope, SCOPES, what="scopes"))
    now, id = int(time.time()), secrets.token_hex(6)
    key = _with_checksum(f"tsk-{id}-{secrets.token_hex(32)}")
    row: dict[str, Any] = {"id": id, "owner": owner, "name": name, "sha256": sha256_of(key), "scopes": " ".join(scopes)}
    row |= {"created": now, "expires": None if life_s is None else now + life_s, "revoked": None}
    row |= {field: getattr(limits, field) for field in KeyLimits.__slots__}
    with transaction() as connection:
        connection.execute(KEYS.insert().values(**row))
    return key, _key(row)


def list_keys() -> list[StoredKey]:
    """Every owner's, newest first, also those that are revoked or expired."""
    with transaction() as connection:
        rows = connection.execute(select(KEYS).order_by(KEYS.c.created.desc(), KEYS.c.id)).mappings()
        return [_key(dict(row)) for row in rows]


def revoke_key(id: str) -> StoredKey:
    """Raises InputError when there is no such key. A key that is revoked already stays so."""
    with transaction() as connection:
        still = (KEYS.c.id == id, KEYS.c.revoked.is_(None))
        connection.execute(update(KEYS).where(*still).values(revoked=int(time.time())))
        row = connection.execute(select(KEYS).where(KEYS.c.id == id)).mappings().first()
    if row is None:
        raise InputError(f"There is no key {id!r}.", "`tunesmith keys list` shows the ids.")
    return _key(dict(row))


def parse_key(key: str) -> str | None:
    """The id inside a key; None when it is none of ours, as its form or its checksum tells without looking it up."""
    match = KEY.fullmatch(key)
    return match[1] if match and key == _with_checksum(key.rpartition("-")[0]) else None


def sha256_of(key: str) -> str:
    """Enough without salt or rounds: a key is 32 random bytes, which nobody guesses."""
    return hashlib.sha256(key.encode()).hexdigest()


def _with_checksum(key: str) -> str:
    return f"{key}-{zlib.crc32(key.encode()):08x}"


def _covers(scope: str, permission: Permission) -> bool:
    return scope in ("all", permission) or (scope == "read" and permission.endswith(".read"))


def _key(row: dict[str, Any]) -> StoredKey:
    limits = KeyLimits(**{field: row[field] for field in KeyLimits.__slots__})
    same = {name: row[name] for name in StoredKey.__slots__ if name not in ("scopes", "limits")}
    return StoredKey(scopes=tuple(cast(str, row["scopes"]).split()), limits=limits, **same)
