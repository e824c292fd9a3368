"""Faults of answers that are JSON objects: not readable, a field of another type, a value that is not in the text, a
category that does not fit it. What is usual is learned from the file itself.

Not here: labels that are no JSON (labels), how a value is looked for in a text (copied). Called by data.check.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.checks.copied import Passage
from tunesmith.data.checks.wording import normal_text, request_text
from tunesmith.data.finding import Finding, shortened
from tunesmith.data.load import SourceRow

JSON_SHARE = 0.8  # of the answers look like an object: the rest is damaged
MIN_ROWS = 10
FEW = 20  # a field with fewer values is judged with the help of the other fields
RARE_SHARE = 0.02
COPIED_SHARE = 0.95
MAX_CATEGORIES, MIN_PER_CATEGORY = 50, 5


@dataclass(frozen=True, slots=True)
class _Value:
    row: SourceRow
    field: str  # dotted path of keys
    value: object


def target_findings(rows: Sequence[SourceRow]) -> Iterator[Finding]:
    """`target_json_invalid`, `target_type_mismatch`, `value_not_in_text` and, for categories, `wrong_label`."""
    meant = [row for row in rows if "{" in row.example.answer[:40] and "}" in row.example.answer]
    if len(meant) < max(MIN_ROWS, JSON_SHARE * len(rows)):
        return
    good: list[tuple[SourceRow, dict[str, object]]] = []
    faults: list[Finding] = []
    for row in rows:
        target, fault = _parse(row.example.answer)
        if target is None:
            todo = "Write the answer as one JSON object, like the others, or take the row out."
            faults.append(Finding(row.line, "target_json_invalid", "error", fault, todo))
        else:
            good.append((row, target))
    if len(good) < JSON_SHARE * len(rows):
        return  # something else with braces, such as code
    yield from faults
    values: dict[str, list[_Value]] = defaultdict(list)
    for row, target in good:
        for field, value in _fields(target):
            values[field].append(_Value(row, field, value))
    mistyped = list(_mistyped(values))
    yield from mistyped
    odd = {(finding.line, finding.detail.split("'")[1]) for finding in mistyped}
    sound = {
        field: [item for item in items if (item.row.line, field) not in odd and isinstance(item.value, str)]
        for field, items in values.items()
    }
    yield from _not_in_text(sound)


def _parse(answer: str) -> tuple[dict[str, object] | None, str]:
    """The object, or what is wrong with the answer."""
    try:
        target = json.loads(answer)
    except ValueError as error:
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return None, f"most answers are JSON objects, this one cannot be read: {reason}{where}."
    except RecursionError:
        return None, "most answers are JSON objects, this one is nested too deeply to be read."
    if not isinstance(target, dict):
        return None, f"most answers are JSON objects, this one is {_type(target)}."
    return target, ""


def _fields(target: dict[str, object], above: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Each key with its dotted path, objects and what is in them alike."""
    for key, value in target.items():
        path = f"{above}.{key}" if above else key
        yield path, value
        if isinstance(value, dict) and depth < 20:
            yield from _fields(value, path, depth + 1)


def _type(value: object) -> str:
    if isinstance(value, list):  # where values may repeat, a list of one is still odd
        return "a list of one" if len(value) == 1 else "a list"
    names = {dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _mistyped(values: dict[str, list[_Value]]) -> Iterator[Finding]:
    """Values of another type than nearly all others of their field have; a list may stand for several values."""
    types = {field: Counter(_type(item.value) for item in items) for field, items in values.items()}
    usual = {field: counts.most_common(1)[0][0] for field, counts in types.items()}
    repeating = [field for field, counts in types.items() if counts["a list"] and usual[field] == "a text"]
    for field, items in values.items():
        expected, size = usual[field], len(items)
        for item in items:
            name = _type(item.value)
            count = types[field][name]
            familiar = name == "a list" and field in repeating and len(repeating) >= 2  # values that may repeat
            rare = count <= max(1, RARE_SHARE * size) if size >= FEW else count == 1 and size >= 3
            if name != expected and rare and not familiar:
                others = types[field][expected]
                detail = f"the field '{field}' is {name} here, but {expected} in {others} other rows."
                yield Finding(item.row.line, "target_type_mismatch", "error", detail, f"Make it {expected}.")


def _not_in_text(values: dict[str, list[_Value]]) -> Iterator[Finding]:
    passages: dict[int, Passage] = {}
    categories = {}
    for field, items in values.items():
        missing = []
        for item in items:
            text = str(item.value)
            passage = passages.get(item.row.line)
            if passage is None:
                passage = passages[item.row.line] = Passage(request_text(item.row.example))
            if text.strip() and not passage.is_garbled and not passage.holds(text):
                missing.append(item)
        size = len(items)
        if len(missing) <= (1 - COPIED_SHARE) * size if size >= FEW else len(missing) <= 1 and size >= 5:
            for item in missing:
                detail = f"the field '{field}' is {shortened(str(item.value))!r}, which the text does not hold."
                detail += f" {size - len(missing)} of {size} rows copy it from there."
                yield Finding(item.row.line, "value_not_in_text", "warning", detail, "Copy the value from the text.")
        elif len(missing) > size / 2:
            categories[field] = items
    for field, items in categories.items():
        yield from _wrong_category(field, items)


def _wrong_category(field: str, items: Sequence[_Value]) -> Iterator[Finding]:
    """A field of few different values that do not stand in the text is a label."""
    from tunesmith.data.checks.mislabel import mislabelled

    sizes = Counter(str(item.value) for item in items)
    shared = [item for item in items if sizes[str(item.value)] > 1]
    if not 2 <= len(sizes) <= MAX_CATEGORIES or len(shared) < MIN_PER_CATEGORY * len(sizes):
        return
    judged = {normal_text(request_text(item.row.example)): item for item in reversed(shared)}
    kept = list(judged.values())
    for index, better in mislabelled(list(judged), [str(item.value) for item in kept]):
        given = shortened(str(kept[index].value))
        detail = f"the field '{field}' is {given!r}, but by the other rows the text is '{better}'."
        todo = "Read the row and correct the field if it is wrong."
        yield Finding(kept[index].row.line, "wrong_label", "warning", detail, todo)
