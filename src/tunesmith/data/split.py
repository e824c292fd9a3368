"""Train and held-out rows, so that no question stands on both sides and every label is on both where it can be.

Not here: writing the parts (dataset), reading the file (load).
Called by data.dataset, by data.check (for the same normal form of a prompt) and by the commands that hold rows out.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.chat import Example, label_set
from tunesmith.errors import InputError


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows with the same normal prompt; they go to one side together."""

    key: str
    rows: tuple[int, ...]
    label: str


class _Separators(dict[int, int]):
    """A translate table that turns punctuation, spaces and control characters into spaces; filled as it is used."""

    def __missing__(self, code: int) -> int:
        category = unicodedata.category(chr(code))[0]
        self[code] = 32 if category in "PZC" else code
        return self[code]


_SEPARATORS = _Separators()


def normal_text(text: str) -> str:
    """Casefolded text in NFKC with punctuation and whitespace collapsed to single spaces; the text itself if
    nothing else is in it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_SEPARATORS).split()) or text


def group_key(example: Example) -> str:
    """What makes two rows the same question: the normal form of their user turns (of the prompt if there are none)."""
    turns = [message for message in example.messages if message.role == "user"] or example.prompt
    return "\x1f".join(normal_text(turn.content) for turn in turns)


def split(
    examples: Sequence[Example], *, fraction: float = 0.1, seed: int = 0, count: int | None = None
) -> tuple[list[int], list[int]]:
    """Indices of the train and of the held-out rows, both ascending; together they are all rows.

    Held out are about `count` rows if given, else about `fraction` of them (as near as whole groups allow).
    Which ones depends on the content and the seed, not on the order of the rows. Where the answers are labels,
    each label gives its share, and keeps at least one group in train.

    Raises:
        InputError: a share outside 0 to 1, a count the file cannot give, or fewer than two different prompts.
    """
    target = _target(len(examples), fraction=fraction, count=count)
    groups = _groups(examples, seed)
    if len(groups) < 2:
        what = f"{len(examples)} rows hold {len(groups)} different prompts: too few to split."
        raise InputError(what, "Give at least two rows with different prompts.")
    held = _held_groups(groups, target)
    held_rows = sorted(row for group in held for row in group.rows)
    inside = set(held_rows)
    return [row for row in range(len(examples)) if row not in inside], held_rows


def _target(num_rows: int, *, fraction: float, count: int | None) -> int:
    if count is not None:
        if not 1 <= count < max(2, num_rows):
            raise InputError(
                f"cannot hold out {count} of {num_rows} rows.", "Use a count of at least 1, below the rows."
            )
        return count
    if not 0 < fraction < 1:
        raise InputError(f"cannot hold out a share of {fraction}.", "Use a number between 0 and 1, such as 0.1.")
    return max(1, round(fraction * num_rows))


def _groups(examples: Sequence[Example], seed: int) -> list[_Group]:
    """All groups in the order the seed draws them."""
    rows_by_key: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        rows_by_key[group_key(example)].append(index)
    labelled = label_set(examples) is not None
    groups = []
    for key, rows in rows_by_key.items():
        answers = Counter(examples[row].answer.strip() for row in rows) if labelled else Counter([""])
        label = min(answers, key=lambda answer: (-answers[answer], answer))
        groups.append(_Group(key, tuple(rows), label))
    return sorted(groups, key=lambda group: _draw(group.key, seed))


def _draw(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{text}".encode()).digest()


def _held_groups(groups: list[_Group], target: int) -> list[_Group]:
    """First each label's share, then whatever is missing, in the drawn order; never every group."""
    by_label: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        by_label[group.label].append(group)
    quotas = _quotas(by_label, target)
    held: list[_Group] = []
    for label, members in by_label.items():
        held.extend(_take(members[:-1], quotas[label]))
    spare = {members[-1].key for members in by_label.values()}
    taken = {group.key for group in held}
    rest = [group for group in groups if group.key not in taken]
    ordered = [group for group in rest if group.key not in spare] + [group for group in rest if group.key in spare]
    held.extend(_take(ordered[:-1], target - sum(len(group.rows) for group in held)))
    return held or [min(groups, key=lambda group: len(group.rows))]


def _quotas(by_label: dict[str, list[_Group]], target: int) -> dict[str, int]:
    """`target` rows shared among the labels by the method of largest remainders; ties in the drawn order."""
    sizes = {label: sum(len(group.rows) for group in members) for label, members in by_label.items()}
    total = sum(sizes.values())
    quotas = {label: target * size // total for label, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda label: -(target * sizes[label] % total))
    for label in by_remainder[: target - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def _take(groups: Sequence[_Group], num_rows: int) -> list[_Group]:
    """Groups in order, each only if it brings the number of rows nearer to `num_rows`."""
    taken: list[_Group] = []
    for group in groups:
        if len(group.rows) < 2 * num_rows:
            taken.append(group)
            num_rows -= len(group.rows)
    return taken
