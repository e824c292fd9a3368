"""JSON values as a person compares them: the text of a model read strictly, cut into leaves, numbers and dates alike.

Not here: scores (structure). Called by the scorers of JSON and of tool calls.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import date
from decimal import Decimal
from typing import Any

from tunesmith.chat import Example
from tunesmith.errors import InputError

NOT_JSON = object()
NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?")  # 007 is a code, not a number
ISO_DATE = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?:[T ]00:00(?::00(?:\.0+)?)?Z?)?")
DAY_FIRST = re.compile(r"(\d{1,2})(\.|\. | )(\d{1,2}|[A-Za-z]{3,9})\.?,?[. ]\s?(\d{4})")  # 5.3.2024, 5 March 2024
MONTH_FIRST = re.compile(r"([A-Za-z]{3,9})\.? (\d{1,2})(?:st|nd|rd|th)?,? (\d{4})")  # March 5, 2024
SLASHED = re.compile(r"(\d{1,2})([/-])(\d{1,2})\2(\d{4})")
MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
          "november", "december")  # fmt: skip


def read_json(text: str) -> tuple[Any, str]:
    """(value, "") or (NOT_JSON, why). Strict: NaN, code fences and text around the value are refused."""
    try:
        return json.loads(text, parse_constant=_refuse_constant), ""
    except (ValueError, RecursionError) as error:
        hint = "it stands in a ``` fence" if text.lstrip().startswith("```") else str(error) or type(error).__name__
        return NOT_JSON, f"the reply is not JSON: {hint}"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def value_of_answer(example: Example) -> Any:
    """The expected answer as JSON; InputError when it is none."""
    value, why = read_json(example.answer)
    if value is NOT_JSON:
        why = why.replace("the reply", "the expected answer", 1)
        raise InputError(f"A JSON scorer cannot be used here: {why}.", "Use another scorer, or mend the row.")
    return value


def leaves(value: Any) -> dict[tuple[str, ...], str]:
    """Path -> JSON text of each leaf. An empty object or list is a leaf; 1 and 1.0 are one number, true and 1 are not.

    Not recursive: a reply may nest deeper than Python's stack.
    """
    found = {}
    todo: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while todo:
        path, item = todo.pop()
        if isinstance(item, dict) and item:
            todo.extend(reversed([((*path, f".{key}"), part) for key, part in item.items()]))
        elif isinstance(item, list) and item:
            todo.extend(reversed([((*path, f"[{index}]"), part) for index, part in enumerate(item)]))
        else:
            whole = isinstance(item, float) and item.is_integer()
            found[path] = json.dumps(int(item) if whole else item, ensure_ascii=False)
    return found


def path_text(path: tuple[str, ...]) -> str:
    return "".join(path).removeprefix(".") or "the top"


Fields = Counter[tuple[tuple[str, ...], str]]  # (path, value) -> how often


def fields(value: Any) -> Fields:
    """The leaves as a person compares them: lists are sets (all items have one path), numbers and dates alike."""
    counted: Fields = Counter()
    for path, text in leaves(value).items():
        field = tuple("[]" if part.startswith("[") else part for part in path)
        counted[field, plain_value(json.loads(text))] += 1
    return counted


def plain_value(value: Any) -> str:
    """One text for all forms of a leaf: 12.50, "12.5" and 12.5; 1,200 and 1200; "5 March 2024" and "2024-03-05".

    A text is a number only when nothing would be lost (007 and 1e5 stay texts), a date only when it can be one alone:
    03/04/2024 stays a text, 13/04/2024 is in April. Case and inner white space of a text are kept.
    """
    if isinstance(value, str):
        text = value.strip()
        if NUMBER.fullmatch(text):
            return _number(Decimal(text.replace(",", "")))
        found = _date(text)
        return f"date {found.isoformat()}" if found else f"text {text}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(Decimal(repr(value)))
    return json.dumps(value)


def _number(value: Decimal) -> str:
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"number {'0' if text in ('-0', '+0') else text}"


def _date(text: str) -> date | None:
    if match := ISO_DATE.fullmatch(text):
        return _day(match[1], match[3], match[4])
    if match := DAY_FIRST.fullmatch(text):
        return _day(match[4], match[3], match[1])
    if match := MONTH_FIRST.fullmatch(text):
        return _day(match[3], match[1], match[2])
    if match := SLASHED.fullmatch(text):
        first, second = int(match[1]), int(match[3])
        if first != second and max(first, second) <= 12:
            return None
        return _day(match[4], str(min(first, second)), str(max(first, second)))
    return None


def _day(year: str, month: str, day: str) -> date | None:
    names = [number for number, name in enumerate(MONTHS, start=1) if name.startswith(month.lower())]
    number = int(month) if month.isdecimal() else (names[0] if names else 0)
    try:
        return date(int(year), number, int(day))
    except ValueError:
        return None
