"""Which row is which between two versions, so that a row keeps its number when it moves or is edited.

Not here: numbers themselves (history), what changed inside a row (diff).
Called by history when a file becomes the next version, and by diff for versions without numbers.

The rule, each step over the rows that the steps before left free, equal keys in order:
1. the same content; 2. the same turns (other metadata or weight); 3. the same turns but for the system prompt;
4. the same question, another answer; 5. the same answer in the same place, with four fifths of the question's words;
6. the question most alike: half the words, or a fifth when the answer is the same;
7. the same answer in the same place; 8. the same answer, when no other free row has it.
The same place: as far behind the nearest row with a partner, or as far before it. What is still free is new, or gone.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence

from tunesmith.chat import Example, Message

WORD = re.compile(r"[^\W\u3040-\u9fff\uac00-\ud7af]+|[\u3040-\u9fff\uac00-\ud7af]")  # a word, or one CJK character
ALMOST_EQUAL, ALIKE, ALIKE_SAME_ANSWER = 0.8, 0.5, 0.2  # share of words in common (Jaccard)
RARE_WORDS, MAX_ROWS_WITH, CANDIDATES = 8, 64, 4  # bounds of the search for the most alike question


def match(
    before: Sequence[Example], after: Sequence[Example], *, ids: tuple[Sequence[str], Sequence[str]]
) -> list[int]:
    """For each row of `after` the index of the row of `before` that it is, -1 for a new one; no index is given twice.

    `ids` are the content ids of both sides.
    """
    pairing = _Pairing(before, after)
    pairing.pair_equal(lambda side, index: ids[side][index])
    for key in (_turns, _turns_but_system, _question):
        pairing.pair_equal(lambda side, index, key=key: key(pairing.rows[side][index]))  # type: ignore[misc]
    pairing.pair_in_place(ALMOST_EQUAL)
    pairing.pair_alike()
    pairing.pair_in_place(0.0)
    pairing.pair_only_answers()
    return pairing.partner


class _Pairing:
    """The state of a match: `partner` of each row after, and what is still free on both sides, in order."""

    def __init__(self, before: Sequence[Example], after: Sequence[Example]) -> None:
        self.rows = (before, after)
        self.partner = [-1] * len(after)
        self.free = (list(range(len(before))), list(range(len(after))))
        self._words: tuple[dict[int, frozenset[str]], dict[int, frozenset[str]]] = ({}, {})

    def settle(self, pairs: Sequence[tuple[int, int]]) -> None:
        for old, new in pairs:
            self.partner[new] = old
        taken = ({old for old, _ in pairs}, {new for _, new in pairs})
        if pairs:
            self.free = tuple([i for i in self.free[side] if i not in taken[side]] for side in (0, 1))  # type: ignore[assignment]

    def pair_equal(self, key: Callable[[int, int], str | None]) -> None:
        """Rows with the same key, in order; None is the same as nothing."""
        if not (self.free[0] and self.free[1]):
            return
        waiting: dict[str | None, deque[int]] = defaultdict(deque)
        for index in self.free[0]:
            waiting[key(0, index)].append(index)
        pairs = []
        for index in self.free[1]:
            wanted = key(1, index)
            if wanted is not None and (same := waiting.get(wanted)):
                pairs.append((same.popleft(), index))
        self.settle(pairs)

    def pair_in_place(self, alike: float) -> None:
        """Rows with the same answer that stand as far behind, or before, the nearest row with a partner."""
        for forward in (True, False):
            places = {place: old for old, place in self._places(0, forward)}
            pairs, taken = [], set()
            for new, place in self._places(1, forward):
                old = places.get(place)
                if old is None or old in taken or not self._answers_equal(old, new):
                    continue
                if self._similarity(old, new) >= alike:
                    pairs.append((old, new))
                    taken.add(old)
            self.settle(pairs)

    def pair_alike(self) -> None:
        found = []
        for new, candidates in self._candidates():
            for old in candidates:
                score = self._similarity(old, new)
                if score >= (ALIKE_SAME_ANSWER if self._answers_equal(old, new) else ALIKE):
                    found.append((-score, abs(old - new), old, new))
        pairs: list[tuple[int, int]] = []
        taken: tuple[set[int], set[int]] = (set(), set())
        for _, _, old, new in sorted(found):
            if old not in taken[0] and new not in taken[1]:
                pairs.append((old, new))
                taken[0].add(old)
                taken[1].add(new)
        self.settle(pairs)

    def pair_only_answers(self) -> None:
        counts = [Counter(self.rows[side][index].answer for index in self.free[side]) for side in (0, 1)]
        only = {answer for answer, count in counts[0].items() if answer and count == 1 == counts[1][answer]}
        old = {self.rows[0][index].answer: index for index in self.free[0]}
        answers = {index: self.rows[1][index].answer for index in self.free[1]}
        self.settle([(old[answer], index) for index, answer in answers.items() if answer in only])

    def _places(self, side: int, forward: bool) -> Iterator[tuple[int, tuple[int, int]]]:
        """Each free row with its place: the nearest partner on one side (as its index before) and the distance."""
        ends = (-1, -1) if forward else (len(self.rows[0]), len(self.rows[side]))
        anchors = {old: (old, old) for old in self.partner} if side == 0 else {}
        if side == 1:
            anchors = {new: (old, new) for new, old in enumerate(self.partner)}
        free = set(self.free[side])
        anchor = ends
        order = range(len(self.rows[side]))
        for index in order if forward else reversed(order):
            if index not in free:
                anchor = anchors[index]
            else:
                yield index, (anchor[0], abs(index - anchor[1]))

    def _candidates(self) -> Iterator[tuple[int, list[int]]]:
        """For each free row after, the few free rows before that share the most of its rarest words; where no word
        is rare, those with its least common word that stand nearest."""
        rows_by_word: dict[str, list[int]] = defaultdict(list)
        for index in self.free[0]:
            for word in self._words_of(0, index):
                rows_by_word[word].append(index)
        for index in self.free[1]:
            words = [word for word in self._words_of(1, index) if word in rows_by_word]
            words.sort(key=lambda word: (len(rows_by_word[word]), word))
            votes: Counter[int] = Counter()
            for word in words[:RARE_WORDS]:
                if len(rows_by_word[word]) <= MAX_ROWS_WITH:
                    votes.update(rows_by_word[word])
            if words and not votes:
                having = rows_by_word[words[0]]
                place = max(0, bisect_left(having, index) - CANDIDATES // 2)
                votes.update(having[place : place + CANDIDATES])
            yield index, [old for old, _ in votes.most_common(CANDIDATES)]

    def _answers_equal(self, old: int, new: int) -> bool:
        """Rows without an answer (for reinforcement) have none in common."""
        return self.rows[0][old].answer == self.rows[1][new].answer != ""

    def _similarity(self, old: int, new: int) -> float:
        one, other = self._words_of(0, old), self._words_of(1, new)
        return len(one & other) / max(1, len(one | other))

    def _words_of(self, side: int, index: int) -> frozenset[str]:
        if index not in self._words[side]:
            example = self.rows[side][index]
            turns = _not_system(example.prompt) or example.messages  # a plain text has no question
            text = " ".join(turn.content for turn in turns)
            self._words[side][index] = frozenset(WORD.findall(text.casefold()))
        return self._words[side][index]


def _turns(example: Example) -> str:
    return _key((*example.messages, *example.rejected))


def _turns_but_system(example: Example) -> str:
    return _key((*_not_system(example.messages), *example.rejected))


def _question(example: Example) -> str | None:
    turns = _not_system(example.prompt)
    return _key(turns) if turns else None


def _not_system(turns: Sequence[Message]) -> list[Message]:
    return [turn for turn in turns if turn.role not in ("system", "developer")]


def _key(turns: Sequence[Message]) -> str:
    return json.dumps([turn.as_dict() for turn in turns])
