"""`tunesmith init`: a commented recipe for a data file it has looked at.

Not here: the recipe's fields and their texts (recipe). Listed in cli.main.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output


def init(
    file: Annotated[Path, typer.Argument(help="The JSONL data file the recipe is for.")],
    *,
    base: Annotated[str | None, typer.Option(help="Base model; the embedded default if unset.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the recipe; FILE with .yaml if unset.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that exists.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a recipe with every key, its default and what it means."""
    from tunesmith.chat import label_set
    from tunesmith.data.files import write_new_files
    from tunesmith.data.load import load_examples
    from tunesmith.recipe import recipe_from, recipe_yaml

    output = Output(as_json=as_json)
    examples = [source.example for source in load_examples(file).examples]
    labels = label_set(examples)
    path = out or file.with_suffix(".yaml")
    values = {"data": str(file)} | ({"base": base} if base else {})
    recipe = recipe_from(values, source="the command")
    seen = f"{len(examples):,} rows" + (
        f" with {len(labels)} different answers: a classification task" if labels else ""
    )
    heading = f"A recipe for {file.name}: {seen}.\nTrain it with: tunesmith train {path}"
    text = recipe_yaml(values, heading=heading)
    write_new_files({path: text.splitlines()}, force=force)
    output.say(f"{file}: {seen}.")
    output.say(f"wrote {path}. Train it with: tunesmith train {path}", "green")
    output.result(
        {
            "recipe": str(path),
            "rows": len(examples),
            "labels": len(labels) if labels else None,
            "values": recipe.model_dump(),
        }
    )
