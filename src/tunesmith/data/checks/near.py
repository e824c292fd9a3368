"""Rows that stand in a file twice, word for word or nearly so, and clusters of texts that ask the same.

Not here: the same question with another answer (labels), rows of the test file (leaks).
Called by data.check, and by data.split, which never parts a cluster.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from tunesmith.chat import Example
from tunesmith.data.checks.wording import ask_the_same, normal_text, request_text, words
from tunesmith.data.finding import Finding
from tunesmith.data.load import SourceRow

SIMILAR = 0.7  # share of common shingles from which function words and their order may differ in a finding
LOOSELY_SIMILAR = 0.5  # the same for clusters, which are there to keep a split honest: one too many does no harm
PROSE_CHARS = 80  # answers shorter than this are labels, values or codes: they agree only when they are equal
PROSE_SHARE = 0.9
KEEP_ONE = "Keep one, unless it should count twice."


def exact_duplicates(rows: Sequence[SourceRow]) -> Iterator[Finding]:
    """Rows with the same messages as an earlier row; only whitespace may differ."""
    for line, first in _exact_copies(rows).items():
        yield Finding(
            line, "exact_duplicate", "warning", f"the same messages as line {first}.", KEEP_ONE, related=first
        )


def _exact_copies(rows: Sequence[SourceRow]) -> dict[int, int]:
    """The line of each copy, and the line of its first."""
    first_line: dict[object, int] = {}
    copies = {}
    for row in rows:
        turns = (*row.example.messages, *row.example.rejected)
        texts = tuple((turn.role, " ".join(turn.content.split()), turn.tool_calls) for turn in turns)
        key = (len(row.example.messages), texts)
        first = first_line.setdefault(key, row.line)
        if first != row.line:
            copies[row.line] = first
    return copies


def near_duplicates(rows: Sequence[SourceRow]) -> Iterator[Finding]:
    """Rows that ask what an earlier row asks, in nearly its words, and are answered alike; exact copies excluded."""
    copies = _exact_copies(rows)
    rows_by_text: dict[str, list[SourceRow]] = defaultdict(list)
    for row in rows:
        if row.line not in copies:
            rows_by_text[normal_text(request_text(row.example))].append(row)
    groups = list(rows_by_text.values())

    def twins(first: int, second: int) -> list[tuple[int, int]]:
        """The lines of rows of two groups that have the same answer."""
        return [
            (one.line, two.line)
            for one in groups[first]
            for two in groups[second]
            if one.line != two.line and answers_agree(one.example, two.example)
        ]

    pairs = [pair for number, group in enumerate(groups) if len(group) > 1 for pair in twins(number, number)]
    texts = [request_text(group[0].example) for group in groups]
    for first, second in request_pairs(texts, wanted=lambda one, two: bool(twins(one, two))):
        pairs += twins(first, second)
    related: dict[int, int] = {}
    for early, late in map(sorted, pairs):
        related[late] = min(early, related.get(late, early))
    for line, first in sorted(related.items()):
        detail = f"asks what line {first} asks, in nearly the same words, and has the same answer."
        yield Finding(line, "near_duplicate", "warning", detail, KEEP_ONE, related=first)


def request_pairs(
    texts: Sequence[str],
    *,
    threshold: float = SIMILAR,
    wanted: Callable[[int, int], bool] = lambda first, second: True,
) -> Iterator[tuple[int, int]]:
    """Pairs of indices, first < second, of texts with different normal forms that ask the same; of the `wanted` ones.

    Their words are the same but for typing errors and politeness, or at least `threshold` of their shingles are common
    and no more than function words differ.
    """
    from tunesmith.data.checks.shingles import near_pairs

    @cache
    def words_of(index: int) -> list[str]:
        return words(texts[index])

    pairs, similarity = near_pairs([normal_text(text) for text in texts], threshold=min(threshold, LOOSELY_SIMILAR))
    for (first, second), value in zip(pairs.tolist(), similarity.tolist(), strict=True):
        if wanted(first, second) and ask_the_same(words_of(first), words_of(second), similarity=value, least=threshold):
            yield first, second


def clusters(texts: Sequence[str], *, threshold: float = LOOSELY_SIMILAR) -> list[list[int]]:
    """All indices in groups of texts that ask the same, directly or through others; in order of their first member."""
    by_normal: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        by_normal[normal_text(text)].append(index)
    groups = list(by_normal.values())
    parent = list(range(len(groups)))

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for first, second in request_pairs([texts[group[0]] for group in groups], threshold=threshold):
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    merged: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        merged[root(number)].extend(group)
    return [sorted(members) for members in merged.values()]


def answers_agree(one: Example, two: Example) -> bool:
    """Whether two answers are the same: equal in normal form, or long prose with most words in common."""
    first, second = normal_text(one.answer), normal_text(two.answer)
    if first == second:
        return True
    if min(len(first), len(second)) < PROSE_CHARS or _is_json(one.answer) or _is_json(two.answer):
        return False
    left, right = set(words(one.answer)), set(words(two.answer))
    return len(left & right) >= PROSE_SHARE * len(left | right)


def _is_json(text: str) -> bool:
    try:
        return text.lstrip()[:1] in ("{", "[") and json.loads(text) is not None
    except ValueError:
        return False
