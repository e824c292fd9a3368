"""What can be said of a file of any size without making Examples: its counts, its problems, its exact duplicates.

Not here: the checks that need the rows themselves (check). Sixteen bytes a row are kept.
Called for files too large to hold.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson

from tunesmith.chat import Example
from tunesmith.data.load import read
from tunesmith.data.read.decode import unescaped_quotes
from tunesmith.errors import Problem
from tunesmith.turns import ROLES

CHAT_ROLES = frozenset(ROLES) - {"tool"}
INSTRUCTIONS = frozenset({"system", "developer"})
MAX_MISSES = 100  # lines that are not plain rows, before lines are no longer tried as one
LOOKED_AT = frozenset({"weight", "tools", "chosen", "rejected", "preferred_output", "non_preferred_output"})


@dataclass(frozen=True, slots=True)
class Scanned:
    """A file as one pass saw it. `lines` and `hashes` have an entry for each good row, in order.

    Equal hashes are equal conversations (roles and contents; with 2 million rows an accident is one in ten million).
    They hold within this process only.
    """

    path: Path
    sha256: str
    format: str
    unit: str
    num_lines: int
    notes: list[Problem]
    problems: list[Problem]  # the first load.MAX_KEPT_PROBLEMS
    problem_counts: Mapping[str, int]
    lines: array[int]
    hashes: array[int]

    @property
    def num_rows(self) -> int:
        return len(self.lines)

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """(line, first line) of every row that another one before it equals, in the order of the lines."""
        import numpy as np

        hashes_N = np.asarray(self.hashes)
        order_N = np.argsort(hashes_N, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(hashes_N[order_N]) != 0]) if len(order_N) else order_N
        first_N = np.empty_like(order_N)
        first_N[order_N] = np.repeat(order_N[starts], np.diff(np.r_[starts, len(order_N)]))
        for index in np.flatnonzero(first_N != np.arange(len(first_N))):
            yield self.lines[index], self.lines[first_N[index]]


def scan(path: str | Path, *, format: str | None = None, map: Mapping[str, str] | None = None) -> Scanned:
    """Judge every row as `load` does (same problems, same notes), and keep none; `format` and `map` as for `read`."""
    reading = read(path, format=format, map=map)
    skimmer = _Skimmer()
    for row in reading.rows():
        if reading.format == "chat" and not map:  # known from the first row on
            reading.source.skim = skimmer.take
        example, _ = reading.outcome(row)
        if example is not None:
            skimmer.add(row.line, _parts(example))
    lines, hashes = skimmer.lines, skimmer.hashes
    source = reading.source
    return Scanned(
        reading.path,
        source.sha256,
        reading.format,
        source.unit,
        source.num_lines,
        reading.notes,
        reading.problems,
        dict(reading.counts),
        lines,
        hashes,
    )


class _Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: str
    content: str


class _PlainRow(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A chat row with nothing but turns of a role and a text."""

    messages: list[_Turn]


PLAIN_ROWS = msgspec.json.Decoder(_PlainRow)


class _Skimmer:
    """Takes the lines that are certainly good chat, which are nearly all, in half the time of a closer look."""

    def __init__(self) -> None:
        self.lines, self.hashes = array("Q"), array("q")
        self.good_orders: set[tuple[str, ...]] = set()
        self.misses = 0

    def add(self, line: int, parts: tuple[Any, ...]) -> None:
        self.lines.append(line)
        self.hashes.append(hash(parts))

    def take(self, line: int, raw: bytes) -> bool:
        """Whether the line was taken; False asks for a closer look. It is what `decode_fast`, `parse_row` and `add`
        do with turns of a role and a text."""
        if self.misses > MAX_MISSES:
            return self._take_with_extras(line, raw)
        try:
            turns = PLAIN_ROWS.decode(raw).messages
        except ValueError:
            self.misses += 1
            return self._take_with_extras(line, raw)
        parts: list[str] = []
        for turn in turns:
            content = turn.content
            if not content or content.isspace():
                return False
            parts.append(turn.role)
            parts.append(content)
        return self._keep(line, raw, parts, 1 + 2 * len(parts))

    def _take_with_extras(self, line: int, raw: bytes) -> bool:
        """The same, where the simplest values may stand beside the turns."""
        try:
            value = orjson.loads(raw)
            turns = value["messages"]
            parts: list[str] = []
            for turn in turns:
                content = turn["content"]
                if len(turn) != 2 or type(content) is not str or not content or content.isspace():
                    return False
                parts.append(turn["role"])
                parts.append(content)
            if not LOOKED_AT.isdisjoint(value):
                return False
            texts = 0
            for extra in value.values():
                if type(extra) is str:
                    texts += 1
                elif type(extra) is not int and extra is not turns:
                    return False
            return self._keep(line, raw, parts, len(value) + texts + 2 * len(parts))
        except (ValueError, KeyError, TypeError):  # orjson's is a ValueError; a row, turn or role of another type
            return False

    def _keep(self, line: int, raw: bytes, parts: list[str], num_strings: int) -> bool:
        """Whether the order of the roles is good and no key comes twice, which would add quotes to those of
        `num_strings`; an escaped quote in a text adds one too, and takes a closer count."""
        order = tuple(parts[::2])
        if order not in self.good_orders and not self._is_good(order):
            return False
        num_quotes = 2 * num_strings
        if raw.count(b'"') != num_quotes and (b"\\" not in raw or unescaped_quotes(raw) != num_quotes):
            return False
        self.add(line, tuple(parts))
        return True

    def _is_good(self, order: tuple[str, ...]) -> bool:
        good = (
            order[-1:] == ("assistant",)
            and order[0] != "assistant"
            and CHAT_ROLES.issuperset(order)
            and INSTRUCTIONS.isdisjoint(order[1:])
        )
        if good:
            self.good_orders.add(order)
        return good


def _parts(example: Example) -> tuple[Any, ...]:
    """What makes two rows the same: roles and contents, then calls and the rejected answer where there are any."""
    parts: list[Any] = [part for turn in example.messages for part in (turn.role, turn.content)]
    calls = tuple(call for turn in example.messages for call in turn.tool_calls)
    return (*parts, calls, example.rejected) if calls or example.rejected else tuple(parts)
