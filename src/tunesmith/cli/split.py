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
    validation: Annotated[float | None, typer.Option(help="A validation part too: a share, or a count.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Keep rows with the same value of this field together, such as a customer.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed holds out other rows.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory to write to; the file's own if unset.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Split a data file into FILE.train.jsonl and FILE.test.jsonl; rows that ask nearly the same stay together."""
    from tunesmith.chat import label_set
    from tunesmith.data.files import write_new_files
    from tunesmith.data.load import load_examples
    from tunesmith.data.split import num_groups, part_size, split_parts
    from tunesmith.errors import InputError

    output = Output(as_json=as_json)
    if fraction is not None and count is not None:
        raise InputError("--fraction and --count were both given.", "Give one of them.")
    examples = [row.example for row in load_examples(file).examples]
    share = 0.1 if fraction is None else fraction
    sizes = {"test": part_size(len(examples), fraction=share, count=count)}
    if validation is not None:
        whole = int(validation) if validation >= 1 and validation.is_integer() else None
        sizes["validation"] = part_size(len(examples), fraction=validation, count=whole)
    rows = split_parts(examples, list(sizes.values()), seed=seed, group_by=group_by)
    parts = dict(zip(("train", *sizes), rows, strict=True))
    directory = file.parent if out is None else out
    paths = {name: directory / f"{file.stem}.{name}.jsonl" for name in parts}
    lines = {paths[name]: [examples[index].to_json() for index in indices] for name, indices in parts.items()}
    write_new_files(lines, force=force)
    groups = num_groups(examples, group_by=group_by)
    labels = label_set(examples)
    for name, indices in parts.items():
        output.say(f"wrote {paths[name]}: {len(indices)} rows")
    kind = "different questions" if group_by is None else f"values of '{group_by}'"
    output.say(f"{len(examples)} rows hold {groups} {kind}; rows of one are in one part.")
    if labels:
        output.say(f"The answers are {len(labels)} labels, and each gave its share.")
    output.say(f"The same file with --seed {seed} gives the same split.")
    document = {
        "file": str(file),
        "rows": len(examples),
        "groups": groups,
        "group_by": group_by,
        "labels": len(labels) if labels else None,
        "fraction": None if count is not None else share,
        "count": count,
        "seed": seed,
        **{name: {"path": str(paths[name]), "rows": len(indices)} for name, indices in parts.items()},
    }
    output.result(document)
