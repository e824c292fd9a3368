"""Replies by what was asked and of whom, in the home folder: the same question to the same contender is asked once.

Not here: how contenders answer (generate, remote), scores. Put around models by the surfaces (`contender.Parts.keep`).
Each reply is on disk when it is there, so an evaluation that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.chat import Message
from tunesmith.contender import Contender, Done, Progress, Reply
from tunesmith.errors import InputError
from tunesmith.folders import home

FILE = "replies.db"
BUSY_S = 60.0  # how long a process waits for another that writes
ASKED_AT_ONCE = 500  # keys in one query; SQLite takes 999 at the least
KEPT = ("text", "prompt_tokens", "completion_tokens", "latency_s", "finish_reason", "cost")  # what a model gives


@dataclass(frozen=True, slots=True)
class ReplyCache:
    """Replies in a SQLite file, which several processes may use at once."""

    path: Path

    @classmethod
    def at_home(cls) -> ReplyCache:
        return cls(home() / FILE)

    def around(self, contender: Contender) -> Contender:
        """The contender, asked only what it was not asked before. One that may answer otherwise each time (sampled
        without a seed), or cannot say what it is, is left as it is."""
        return CachedContender(contender, self) if getattr(contender, "identity", None) else contender

    @contextlib.contextmanager
    def opened(self) -> Iterator[Kept]:
        """A process that is killed leaves whole rows only; writers wait for each other. Raises InputError when the
        file cannot be used."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode=DELETE")  # SQLite before 3.51.3 can lose writes of a WAL
                connection.execute("CREATE TABLE IF NOT EXISTS reply (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
                yield Kept(connection)
        except sqlite3.Error as error:
            what = f"The replies kept in {self.path} cannot be used: {error}."
            raise InputError(what, "Remove the file, or evaluate with --no-cache.") from error


@dataclass(frozen=True, slots=True)
class Kept:
    """The replies of an open file."""

    connection: sqlite3.Connection

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), ASKED_AT_ONCE):
            part = keys[start : start + ASKED_AT_ONCE]
            query = f"SELECT key, reply FROM reply WHERE key IN ({','.join('?' * len(part))})"
            for key, text in self.connection.execute(query, part):
                found[key] = Reply(**json.loads(text), cached=True)
        return found

    def put(self, key: str, reply: Reply) -> None:
        """On disk before it returns: each statement is a transaction of its own."""
        text = json.dumps({name: getattr(reply, name) for name in KEPT})
        self.connection.execute("INSERT OR REPLACE INTO reply VALUES (?, ?)", (key, text))


class CachedContender:
    """Another contender whose replies are kept. It asks what is missing in one go."""

    def __init__(self, inner: Contender, cache: ReplyCache) -> None:
        self.name = inner.name
        self.inner = inner
        self.cache = cache

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        """As the inner one's. A prompt asked alone is another question than the same one among others: its latency is
        that of one request, not a share of a batch's."""
        identity = str(getattr(self.inner, "identity", ""))
        alone = len(prompts) == 1 and getattr(self.inner, "batched", False)
        keys = [key_of(messages, identity, max_new_tokens=max_new_tokens, alone=alone) for messages in prompts]
        with self.cache.opened() as kept:
            found = kept.get(keys)
            missing = [row for row, key in enumerate(keys) if key not in found]
            if progress and len(missing) < len(keys):
                progress(len(keys) - len(missing))

            def keep(number: int, reply: Reply) -> None:
                key = keys[missing[number]]
                found[key] = reply
                kept.put(key, reply)
                if progress:
                    progress(1)

            if missing:
                _answer_each(self.inner, [prompts[row] for row in missing], max_new_tokens=max_new_tokens, done=keep)
        return [found[key] for key in keys]


def key_of(messages: Sequence[Message], identity: str, *, max_new_tokens: int, alone: bool) -> str:
    """sha256 of all that a reply depends on. Prompt files, examples and passages stand in the messages; what the
    model is, its precision, template and decoding in its identity; the program's version stands for its code."""
    asked = [message.as_dict() for message in messages]
    whole = [__version__, identity, asked, max_new_tokens, alone]
    return hashlib.sha256(json.dumps(whole, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


def _answer_each(contender: Any, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, done: Done) -> None:
    if hasattr(contender, "answer_each"):
        contender.answer_each(prompts, max_new_tokens=max_new_tokens, done=done)
        return
    for number, reply in enumerate(contender.answer(prompts, max_new_tokens=max_new_tokens)):
        done(number, reply)
