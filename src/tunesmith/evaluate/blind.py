"""A blind comparison on disk: the rows with both replies, and every vote as a line that survives kill -9.

Not here: what the votes say (tally), the page (cli.blind_app). Called by cli.blind.
The files are the state: each look reads them, so that a page, a second one and a restart all see the same.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.chat import Example, Message
from tunesmith.errors import InputError
from tunesmith.runs import now

Side = Literal["a", "b"]
Choice = Literal["left", "right", "tie", "both_bad"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
COMPARISON, ROWS, VOTES = "comparison.json", "rows.jsonl", "votes.jsonl"
RATER = re.compile(r"[\w][\w .@+-]{0,39}")
MAX_COMMENT = 2000  # characters


@dataclass(frozen=True, slots=True)
class Row:
    """A question and the two replies. `number` is its line among the prompts, from 1."""

    number: int
    example: str
    prompt: tuple[dict[str, str], ...]
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Vote:
    """What a rater said of a row. `left` is the contender that stood at the left."""

    rater: str
    row: int
    left: Side
    choice: Choice
    comment: str = ""

    @property
    def winner(self) -> Side | None:
        if self.choice not in ("left", "right"):
            return None
        other: Side = "b" if self.left == "a" else "a"
        return self.left if self.choice == "left" else other


@dataclass(frozen=True, slots=True)
class Votes:
    """The votes that count: the last of each rater for a row, without those taken back; in the order given."""

    cast: tuple[Vote, ...]
    ended: str | None  # when the comparison was ended and the names were shown

    def of(self, rater: str) -> list[Vote]:
        return [vote for vote in self.cast if vote.rater == rater]

    @property
    def raters(self) -> list[str]:
        return sorted({vote.rater for vote in self.cast})


class Comparison:
    """A handle on the directory of a comparison."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()  # of the journal: the page answers on several threads

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `create` wrote: a, b, weights, prompts, seed, token, raters, created."""
        return dict(json.loads((self.directory / COMPARISON).read_text(encoding="utf-8")))

    @cached_property
    def rows(self) -> dict[int, Row]:
        """The rows to judge, by number: those on which the two replied differently."""
        return {row.number: row for row in self._all_rows if row.a.strip() != row.b.strip()}

    @property
    def same(self) -> int:
        """How many rows have the same reply twice; there is nothing to judge on them."""
        return len(self._all_rows) - len(self.rows)

    @cached_property
    def _all_rows(self) -> list[Row]:
        lines = (self.directory / ROWS).read_text(encoding="utf-8").split("\n")
        return [Row(**json.loads(line)) for line in lines if line]

    def votes(self) -> Votes:
        cast: dict[tuple[str, int], Vote] = {}
        ended = None
        path = self.directory / VOTES
        for line in path.read_bytes().split(b"\n") if path.exists() else []:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # the line a crash tore
            key = (event.get("rater"), event.get("row"))
            if event["event"] == "end":
                ended = ended or event["time"]
            elif event["event"] == "undo":
                cast.pop(key, None)
            elif key[1] in self.rows:
                cast.pop(key, None)  # the order is that of the last votes
                cast[key] = Vote(**{name: event[name] for name in Vote.__dataclass_fields__})
        return Votes(tuple(cast.values()), ended)

    def order(self, rater: str) -> list[tuple[int, Side]]:
        """The rows in the order this rater sees them, and who stands at the left: each contender on half of them."""
        draw = random.Random(f"{self.facts['seed']}/{rater}")
        numbers = list(self.rows)
        draw.shuffle(numbers)
        sides: list[Side] = ["a", "b"] * (len(numbers) // 2 + 1)
        first = draw.randrange(2)
        sides = sides[first : first + len(numbers)]
        draw.shuffle(sides)
        return list(zip(numbers, sides, strict=True))

    def next_row(self, rater: str) -> tuple[Row, Side] | None:
        """The first row of the rater's order without a vote; None when all have one."""
        judged = {vote.row for vote in self.votes().of(rater)}
        return next(((self.rows[number], left) for number, left in self.order(rater) if number not in judged), None)

    def vote(self, rater: str, row: int, *, choice: Choice, comment: str = "") -> bool:
        """Keep a vote on the row the rater sees. False for any other row: the page was an old one, or sent twice."""
        with self._lock:
            shown = self.next_row(check_rater(rater))
            if shown is None or shown[0].number != row or self.votes().ended:
                return False
            vote = Vote(rater, row, shown[1], choice, comment.strip()[:MAX_COMMENT])
            self._append({"event": "vote", **asdict(vote)})
            return True

    def undo(self, rater: str) -> bool:
        """Take the rater's last vote back, so that its row comes again. False when there is none, or it has ended."""
        with self._lock:
            votes = self.votes()
            mine = votes.of(rater)
            if not mine or votes.ended:
                return False
            self._append({"event": "undo", "rater": rater, "row": mine[-1].row})
            return True

    def end(self) -> None:
        """No vote counts any more, and the names may be shown."""
        with self._lock:
            if not self.votes().ended:
                self._append({"event": "end"})

    def _append(self, event: Mapping[str, Any]) -> None:
        """One line, on the disk before this returns."""
        with (self.directory / VOTES).open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line torn by a crash must not swallow this one
                    file.write(b"\n")
            file.write(json.dumps({"time": now(), **event}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def check_rater(name: str) -> str:
    if not RATER.fullmatch(name):
        raise InputError(f"The rater's name {name!r} cannot be used.", "Up to 40 letters, digits, spaces and . @ + -")
    return name


def open_comparison(directory: Path, asked: Mapping[str, Any]) -> Comparison | None:
    """The comparison that lies in the directory; None when there is none yet.

    `asked`: the facts it must agree on. Raises InputError when it compares something else.
    """
    if not (directory / COMPARISON).is_file():
        return None
    found = Comparison(directory)
    if other := [key for key, value in asked.items() if found.facts.get(key) != value]:
        what = f"{directory} holds another comparison: its {other[0]} is {found.facts.get(other[0])!r}."
        raise InputError(what, "Choose another --out, or give the command it was begun with.")
    return found


def create(
    directory: Path,
    examples: Sequence[Example],
    *,
    replies: tuple[Sequence[str], Sequence[str]],
    facts: Mapping[str, Any],
) -> Comparison:
    """Write a comparison; comparison.json comes last, so that one which was cut off here is made again.

    Raises InputError when all replies are the same: there is nothing to judge.
    """
    numbers = range(1, len(examples) + 1)
    rows = [
        Row(number, example.id, tuple(_turn(message) for message in example.prompt), a, b)
        for number, example, a, b in zip(numbers, examples, *replies, strict=True)
    ]
    if all(row.a.strip() == row.b.strip() for row in rows):
        raise InputError(f"The two reply the same to all {len(rows)} prompts.", "There is nothing to judge.")
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / ROWS, (json.dumps(asdict(row), ensure_ascii=False) for row in rows))
    whole = {**facts, "token": secrets.token_urlsafe(16), "created": now()}
    _write(directory / COMPARISON, [json.dumps(whole, ensure_ascii=False, indent=2)])
    return Comparison(directory)


def preferences(comparison: Comparison) -> tuple[list[dict[str, Any]], int]:
    """Rows of preference data in OpenAI's form, one where most raters prefer the same reply; how many rows are left
    out: not judged, tied, both bad, or the raters do not agree."""
    votes = comparison.votes()
    rows = []
    for number, row in comparison.rows.items():
        winners = [vote.winner for vote in votes.cast if vote.row == number]
        ahead = winners.count("b") - winners.count("a")
        if ahead:
            better, worse = (row.b, row.a) if ahead > 0 else (row.a, row.b)
            rows.append(
                {
                    "input": {"messages": list(row.prompt)},
                    "preferred_output": [{"role": "assistant", "content": better}],
                    "non_preferred_output": [{"role": "assistant", "content": worse}],
                }
            )
    return rows, len(comparison.rows) - len(rows)


def _turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _write(path: Path, lines: Iterable[str]) -> None:
    staged = path.with_name(f".{path.name}.staged")
    with staged.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
