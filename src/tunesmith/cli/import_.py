"""`tunesmith import`: another trainer's config as a recipe and rows, with an account of every setting.

Not here: what the settings mean (data.imports). Listed in cli.main.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.data.imports.config import Imported
    from tunesmith.data.imports.sheet import Setting


def import_(
    config: Annotated[Path, typer.Argument(help="A training config of Axolotl or LLaMA-Factory, YAML or JSON.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Directory for the recipe and rows; CONFIG's name if unset.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="Where a data set of the config is on this machine.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn another trainer's config and data into a recipe and rows; every setting is accounted for."""
    from tunesmith.data.imports.config import import_config

    output = Output(as_json=as_json)
    folder = out or Path(config.stem)
    imported = import_config(config, out=folder, given=_given(data or []), force=force)
    _say_settings(output, "Used", imported.used, ("key", "value", "became"))
    _say_settings(output, "Nothing to do", imported.default_equal, ("key", "value", "because"))
    four = ("key", "value", "why", "instead")
    _say_settings(
        output, "No equal here: the result may differ", [one for one in imported.no_equal if one.matters], four
    )
    _say_settings(
        output, "No equal here: speed, memory, places", [one for one in imported.no_equal if not one.matters], four
    )
    if imported.assumed:
        output.heading(f"{imported.tool}'s own defaults, put into the recipe")
        output.table(
            ("", "", ""), [(key, imported.values.get(key, ""), text) for key, text in imported.assumed.items()]
        )
    _say_rows(output, imported)
    step = _next_step(imported, folder)
    output.say()
    output.say(f"wrote {imported.recipe}. {step}", "yellow" if imported.missing else "green")
    output.result(imported.as_dict() | {"next": step})


def _given(pairs: list[str]) -> dict[str, Path]:
    from tunesmith.errors import InputError

    given = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not Path(file).exists():
            what = "has no '='" if not equals else "names a file that does not exist"
            raise InputError(f"--data {pair!r} {what}.", "Write --data NAME=FILE, the name as in the config.")
        given[name] = Path(file)
    return given


def _say_settings(output: Output, title: str, found: Sequence[Setting], columns: tuple[str, ...]) -> None:
    if not found:
        return
    output.heading(f"{title} ({len(found)})")
    cut = [" ".join(str(one.value).split()) for one in found]
    values = [text if len(text) <= 32 else text[:29] + "..." for text in cut]
    rows = [(one.key, value, one.text, one.instead)[: len(columns)] for one, value in zip(found, values, strict=True)]
    output.table(columns, rows)


def _say_rows(output: Output, imported: Imported) -> None:
    for rows in imported.rows:
        extra = f"; columns left out: {', '.join(rows.columns_left_out)}" if rows.columns_left_out else ""
        output.say(f"{rows.name}: {rows.taken:,} of {rows.total:,} rows from {rows.path}{extra}")


def _next_step(imported: Imported, folder: Path) -> str:
    if imported.missing:
        names = ", ".join(imported.missing)
        return (
            f"It is a draft: the rows of {names} are not here or cannot be read. "
            f"Next: tunesmith import {imported.config} --out {folder} --force --data NAME=FILE"
        )
    if not imported.trainable:
        return f"Its rows are pairs, which no method trains on yet. Next: tunesmith check {folder / 'data.jsonl'}"
    run = f" --out {imported.run_dir}" if imported.run_dir else ""
    return f"Next: tunesmith train {imported.recipe}{run}"
