"""Train and held-out rows, so that no question stands on both sides and every label is on both where it can be.

Not here: which questions are the same (near), writing the parts (dataset), reading the file (load).
Called by data.dataset and by the commands that hold rows out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.chat import Example, label_set
from tunesmith.data.checks.near import clusters
from tunesmith.data.checks.wording import normal_text
from tunesmith.errors import InputError


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that go to one side together: nearly the same question, or the same value of a field."""

    key: str
    rows: tuple[int, ...]
    label: str


def group_key(example: Example) -> str:
    """What makes two rows the same question: the normal form of their user turns (of the prompt if there are none)."""
    return "\x1f".join(normal_text(text) for text in _asked(example))


def _asked(example: Example) -> list[str]:
    turns = [message for message in example.messages if message.role == "user"] or example.prompt
    return [turn.content for turn in turns]


def split(
    examples: Sequence[Example],
    *,
    fraction: float = 0.1,
    seed: int = 0,
    count: int | None = None,
    group_by: str | None = None,
) -> tuple[list[int], list[int]]:
    """Indices of the train and of the held-out rows, both ascending; together they are all rows.

    Held out are about `count` rows if given, else about `fraction` of them (as near as whole groups allow).

    Raises:
        InputError: as `part_size` and `split_parts` do.
    """
    size = part_size(len(examples), fraction=fraction, count=count)
    train, held = split_parts(examples, [size], seed=seed, group_by=group_by)
    return train, held


def split_parts(
    examples: Sequence[Example], sizes: Sequence[int], *, seed: int = 0, group_by: str | None = None
) -> list[list[int]]:
    """Indices of the train rows and of one held-out part for each size, all ascending; together they are all rows.

    Rows that ask nearly the same, or have the same value of the field `group_by`, stay in one part. Which rows are held
    out depends on the content and the seed, not on the order of the rows. Where the answers are labels, each label
    gives its share, and keeps at least one group in train.

    Raises:
        InputError: parts as large as the whole, fewer groups than parts, or rows that lack the field.
    """
    if len(sizes) > 1 and sum(sizes) >= len(examples):
        what = f"cannot hold out {' + '.join(map(str, sizes))} of {len(examples)} rows."
        raise InputError(what, "Hold out fewer rows: some must be left to train on.")
    groups = _groups(examples, seed, group_by)
    if len(groups) <= len(sizes):
        what = f"{len(examples)} rows hold {len(groups)} different prompts or groups: too few to split."
        raise InputError(what, f"Give at least {len(sizes) + 1} rows that have nothing in common.")
    parts: list[list[int]] = []
    for later, size in zip(range(len(sizes) - 1, -1, -1), sizes, strict=True):
        held = _held_groups(groups, size, keep=1 + later)
        parts.append(sorted(row for group in held for row in group.rows))
        taken = {group.key for group in held}
        groups = [group for group in groups if group.key not in taken]
    return [sorted(row for group in groups for row in group.rows), *parts]


def part_size(num_rows: int, *, fraction: float = 0.1, count: int | None = None) -> int:
    """The number of rows to hold out.

    Raises:
        InputError: a share outside 0 to 1, or a count the file cannot give.
    """
    if count is not None:
        if not 1 <= count < max(2, num_rows):
            raise InputError(
                f"cannot hold out {count} of {num_rows} rows.", "Use a count of at least 1, below the rows."
            )
        return count
    if not 0 < fraction < 1:
        raise InputError(f"cannot hold out a share of {fraction}.", "Use a number between 0 and 1, such as 0.1.")
    return max(1, round(fraction * num_rows))


def num_groups(examples: Sequence[Example], *, group_by: str | None = None) -> int:
    """How many groups a split has to choose from."""
    return len(_groups(examples, 0, group_by))


def _groups(examples: Sequence[Example], seed: int, group_by: str | None) -> list[_Group]:
    """All groups in the order the seed draws them."""
    labelled = label_set(examples) is not None
    groups = []
    for key, rows in (_by_question(examples) if group_by is None else _by_field(examples, group_by)).items():
        answers = Counter(examples[row].answer.strip() for row in rows) if labelled else Counter([""])
        label = min(answers, key=lambda answer: (-answers[answer], answer))
        groups.append(_Group(key, tuple(rows), label))
    return sorted(groups, key=lambda group: _draw(group.key, seed))


def _by_question(examples: Sequence[Example]) -> dict[str, list[int]]:
    rows_by_key: dict[str, list[int]] = defaultdict(list)
    texts: dict[str, str] = {}
    for index, example in enumerate(examples):
        key, text = group_key(example), "\n".join(_asked(example))
        rows_by_key[key].append(index)
        texts[key] = min(text, texts.get(key, text))
    keys = sorted(rows_by_key)  # so that clusters do not depend on the order of the rows
    return {
        keys[members[0]]: [row for member in members for row in rows_by_key[keys[member]]]
        for members in clusters([texts[key] for key in keys])
    }


def _by_field(examples: Sequence[Example], field: str) -> dict[str, list[int]]:
    lacking = [index + 1 for index, example in enumerate(examples) if field not in example.metadata]
    if lacking:
        shown = ", ".join(map(str, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
        what = f"{len(lacking)} of {len(examples)} rows have no field '{field}' beside their messages (rows {shown})."
        raise InputError(what, "Name a field that every row has, or leave --group-by out.")
    rows_by_value: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        rows_by_value[json.dumps(example.metadata[field], sort_keys=True)].append(index)
    return rows_by_value


def _draw(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{text}".encode()).digest()


def _held_groups(groups: list[_Group], target: int, keep: int) -> list[_Group]:
    """First each label's share, then whatever is missing, in the drawn order; `keep` groups stay."""
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
    return held[: len(groups) - keep] or [min(groups, key=lambda group: len(group.rows))]


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
