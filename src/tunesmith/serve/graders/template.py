"""`{{item.question}}`: variables in a grader's or an eval's texts, put in as plain text.

Not here: any template language. What is put in is not read again, so a row cannot smuggle in a variable, and a text
costs no more than its length. Called by graders and eval runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

NAMESPACES = ("item", "sample")
_VARIABLE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]{}]+)|\[(\d{1,9})\]")

Path = tuple[str | int, ...]


class VariableError(Exception):
    """A variable that cannot be read, or that the row does not have. `of_sample`: the model's answer is to blame."""

    def __init__(self, message: str, *, of_sample: bool = False) -> None:
        super().__init__(message)
        self.of_sample = of_sample


def fill(text: str, namespaces: Mapping[str, Any]) -> str:
    """The text with each variable replaced: a text as it is, anything else as JSON. Raises VariableError."""
    return _VARIABLE.sub(lambda match: as_text(look_up(parse_path(match[1]), namespaces)), text)


def variables(text: str) -> list[Path]:
    """The variables of a text, in order. Raises VariableError for one that cannot be read."""
    return [parse_path(match[1]) for match in _VARIABLE.finditer(text)]


def parse_path(written: str) -> Path:
    """`item.turns[0].text` -> ("item", "turns", 0, "text")."""
    name = written.strip()
    head = re.split(r"[.\[]", name, maxsplit=1)[0]
    if head not in NAMESPACES:
        known = " or ".join(f"{{{{{namespace}.NAME}}}}" for namespace in NAMESPACES)
        raise VariableError(f"{{{{{name}}}}} is no variable: write {known}.")
    path: list[str | int] = [head]
    position = len(head)
    while position < len(name):
        step = _STEP.match(name, position)
        if step is None:
            raise VariableError(f"{{{{{name}}}}} cannot be read from {name[position:]!r} on.")
        path.append(step[1].strip() if step[1] is not None else int(step[2]))
        position = step.end()
    return tuple(path)


def look_up(path: Path, namespaces: Mapping[str, Any]) -> Any:
    """The value at a path. Raises VariableError naming what there is instead."""
    value: Any = namespaces
    for depth, step in enumerate(path):
        if isinstance(step, str):
            known = isinstance(value, Mapping) and step in value
        else:
            known = isinstance(value, list) and step < len(value)
        if not known:
            raise _missing(path, depth, value)
        value = value[step]
    return value


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def written(path: Path) -> str:
    return str(path[0]) + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path[1:])


def _missing(path: Path, depth: int, value: Any) -> VariableError:
    if path[:2] == ("sample", "output_json") and depth == 1:
        return VariableError(f"{{{{{written(path)}}}}}: the model's answer is not JSON.", of_sample=True)
    what = f"{{{{{written(path)}}}}}: there is no {written(path[: depth + 1])}"
    names = ", ".join(map(str, value)) if isinstance(value, Mapping) else ""
    there = f"; {written(path[:depth])} has {names}" if names and depth else ""
    return VariableError(f"{what}{there}.", of_sample=path[:2] == ("sample", "output_json"))
