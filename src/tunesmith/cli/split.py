"""`tunesmith split`: one data file into a train and a test file that share no question.

Not here: who goes where (data.split). Listed in cli.main.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output


def split(
    file: Annotated[Path, typer.Argument(help="The JSONL file to split.")],
    *,
    fraction: Annotated[
        float | None, typer.Option(help="Share of the rows to hold out (0 to 1); 0.1 if unset.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Number of rows to hold out, instead of a share.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed holds out other rows.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory to write to; the file's own if unset.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Split a data file into FILE.train.jsonl and FILE.test.jsonl; rows with the same question stay together."""
    from tunesmith.chat import label_set
    from tunesmith.data.files import write_new_files
    from tunesmith.data.load import load_examples
    from tunesmith.data.split import group_key
    from tunesmith.data.split import split as split_rows
    from tunesmith.errors import InputError

    output = Output(as_json=as_json)
    if fraction is not None and count is not None:
        raise InputError("--fraction and --count were both given.", "Give one of them.")
    examples = [row.example for row in load_examples(file).examples]
    share = 0.1 if fraction is None else fraction
    train, test = split_rows(examples, fraction=share, seed=seed, count=count)
    directory = file.parent if out is None else out
    parts = {directory / f"{file.stem}.train.jsonl": train, directory / f"{file.stem}.test.jsonl": test}
    write_new_files(
        {path: [examples[index].to_json() for index in indices] for path, indices in parts.items()}, force=force
    )
    num_groups = len({group_key(example) for example in examples})
    labels = label_set(examples)
    for path, indices in parts.items():
        output.say(f"wrote {path}: {len(indices)} rows")
    output.say(
        f"{len(examples)} rows hold {num_groups} different questions; rows with the same question are on one side."
    )
    if labels:
        output.say(f"The answers are {len(labels)} labels, and each gave its share.")
    output.say(f"The same file with --seed {seed} gives the same split.")
    train_path, test_path = parts
    document = {
        "file": str(file),
        "rows": len(examples),
        "groups": num_groups,
        "labels": len(labels) if labels else None,
        "fraction": None if count is not None else share,
        "count": count,
        "seed": seed,
        "train": {"path": str(train_path), "rows": len(train)},
        "test": {"path": str(test_path), "rows": len(test)},
    }
    output.result(document)
