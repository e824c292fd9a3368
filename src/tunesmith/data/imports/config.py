"""A training config of Axolotl or LLaMA-Factory, with the data it describes, as a recipe and rows of ours.

Not here: what each key means (axolotl, llamafactory), printing (cli.import_).
Called by the command `import`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.chat import parse_row
from tunesmith.data.files import write_new_files
from tunesmith.data.finding import shortened
from tunesmith.data.imports import axolotl, llamafactory
from tunesmith.data.imports.places import Places
from tunesmith.data.imports.rows import RowFault, Shape, Source, converted, left_out
from tunesmith.data.imports.sheet import Setting, Sheet
from tunesmith.data.read.decode import Fault
from tunesmith.data.read.source import Source as FileRows
from tunesmith.errors import DataError, InputError, Problem
from tunesmith.recipe import read_recipe, recipe_from, recipe_yaml

TOOLS = (axolotl, llamafactory)
RECIPE, DATA, VALIDATION = "recipe.yaml", "data.jsonl", "validation.jsonl"


@dataclass(frozen=True, slots=True)
class Rows:
    """A data set of the config as it was read. `taken` of `total` rows were asked for."""

    name: str
    path: Path
    total: int
    taken: int
    columns_left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written, and what became of each key. `missing`: data sets that are not here or cannot be read; while
    there are any, no data file is written and the recipe is a draft."""

    tool: str
    config: Path
    recipe: Path
    values: Mapping[str, Any]
    used: Sequence[Setting]
    default_equal: Sequence[Setting]
    no_equal: Sequence[Setting]
    assumed: Mapping[str, str]
    rows: Sequence[Rows]
    missing: Sequence[str]
    run_dir: str | None
    trainable: bool  # the rows are of a kind that `train` takes

    def as_dict(self) -> dict[str, Any]:
        lists = {name: [one.as_dict() for one in getattr(self, name)] for name in ("used", "default_equal", "no_equal")}
        sets = [
            {"name": one.name, "file": str(one.path), "rows": one.total, "taken": one.taken,
             "columns_left_out": list(one.columns_left_out)}
            for one in self.rows
        ]  # fmt: skip
        return {
            "tool": self.tool, "config": str(self.config), "recipe": str(self.recipe), "values": dict(self.values),
            **lists, "assumed": dict(self.assumed), "datasets": sets, "missing": list(self.missing),
        }  # fmt: skip


def import_config(path: Path, *, out: Path, given: Mapping[str, Path], force: bool = False) -> Imported:
    """Write `out/recipe.yaml`, and the rows beside it where all of them are here; all of it or nothing.

    Raises:
        InputError: the config cannot be read or is of no known trainer, or a file exists and `force` is not set.
        DataError: rows do not fit their description.
    """
    config = read_recipe(path)  # JSON is YAML too
    tool = _tool(config, path)
    sheet = Sheet(config)
    train, validation = tool.sources(sheet, Places(path.parent, given))
    if unknown := sorted(set(given) - {source.name for source in (*train, *validation)}):
        names = ", ".join(source.name for source in (*train, *validation)) or "none"
        raise InputError(f"{path} has no data set {', '.join(unknown)}.", f"It has: {names}.")
    missing = [source.name for source in (*train, *validation) if source.path is None or source.shape is None]
    missing += [] if train else ["any training data"]
    scans = {} if missing else {source.name: _scan(source) for source in (*train, *validation)}
    sheet.recipe["data"] = str(out / DATA)
    if validation:
        sheet.recipe["validation"] = str(out / VALIDATION)
    tool.settle(sheet, sum(scans[source.name].taken for source in train) if scans else None)
    recipe = recipe_from(sheet.recipe, source=str(path))
    files: dict[Path, Any] = {
        out / RECIPE: recipe_yaml(recipe.model_dump(), heading=_heading(path, tool, sheet)).splitlines()
    }
    if not missing:
        files[out / DATA] = (line for source in train for line in _lines(source, scans[source.name].taken))
        if validation:
            files[out / VALIDATION] = (
                line for source in validation for line in _lines(source, scans[source.name].taken)
            )
    write_new_files(files, force=force)
    shapes = [source.shape for source in train if source.shape]
    return Imported(
        tool=tool.NAME, config=path, recipe=out / RECIPE, values=sheet.recipe, used=list(sheet.used.values()),
        default_equal=list(sheet.default_equal.values()), no_equal=list(sheet.no_equal.values()), assumed=sheet.assumed,
        rows=list(scans.values()), missing=missing, run_dir=sheet.get("output_dir"),
        trainable=sheet.recipe.get("method") == "dpo" or not any(shape.chosen for shape in shapes),
    )  # fmt: skip


def _tool(config: Mapping[str, Any], path: Path) -> ModuleType:
    for tool in TOOLS:
        if all(key in config for key in tool.KEYS):
            return tool
    keys = "; ".join(f"{tool.NAME} by {', '.join(tool.KEYS)}" for tool in TOOLS)
    seen = ", ".join(list(config)[:6])
    raise InputError(f"{path} is no config of a trainer that is known (it has {seen}).", f"Known are: {keys}.")


def _heading(path: Path, tool: ModuleType, sheet: Sheet) -> str:
    lines = [f"Made from {path.name}, a config of {tool.NAME}.", ""]
    lines += [f"{name}: {sheet.recipe.get(name, '')} ({text})" for name, text in sheet.assumed.items()]
    if sheet.no_equal:
        lines += ["", "Settings that have no equal here, and may change the result:"]
        lines += [
            f"  {one.key}: {_short(one.value)}. {one.text}; instead: {one.instead}"
            for one in sheet.no_equal.values()
            if one.matters
        ]
    # A comment in YAML holds no control character; escaped, it stays to be seen.
    return "\n".join(line if line.isprintable() else repr(line) for line in lines)


def _short(value: Any) -> str:
    return shortened(" ".join(str(value).split()))


def _scan(source: Source) -> Rows:
    """Go through a data set once and refuse what does not fit; the counts of what is there."""
    assert source.path and source.shape
    problems: list[Problem] = []
    others: Counter[str] = Counter()
    total = 0
    for row in FileRows(source.path).rows({}):
        total += 1
        faults = [row.fault] if row.fault else []
        if not faults:
            others.update(left_out(row.value, source.shape) if isinstance(row.value, dict) else ())
            faults = _row_faults(row.value, source.shape)
        problems += [
            Problem(str(source.path), row.line or None, one.column, one.what, one.todo, one.issue) for one in faults
        ]
    if not total:
        problems.append(
            Problem(str(source.path), None, None, "it has no rows.", "Give a file with rows.", "empty_file")
        )
    if problems:
        raise DataError(problems)
    return Rows(source.name, source.path, total, source.taken(total), tuple(others))


def _row_faults(value: Any, shape: Shape) -> list[Fault]:
    try:
        found = parse_row(converted(value, shape))[1]
    except RowFault as error:
        return [Fault("missing_messages", f"{error}.", "Correct the row, or its description in the config.")]
    return [Fault(one.issue, one.what, one.todo) for one in found]


def _lines(source: Source, taken: int) -> Iterator[str]:
    assert source.path and source.shape
    for row in itertools.islice(FileRows(source.path).rows({}), taken):
        yield json.dumps(converted(row.value, source.shape), ensure_ascii=False)
