"""`tunesmith memorise`: whether a model gives training answers back verbatim, and planted canaries for a sharper test.

Not here: the measuring (evaluate.memorise, evaluate.canaries). Listed in cli.main.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.chat import Example
    from tunesmith.contender import Contender
    from tunesmith.evaluate.canaries import Canary


def memorise(
    contender: Annotated[str | None, typer.Argument(help="The tuned model, adapter:DIR; none with --canaries.")] = None,
    *,
    train: Annotated[Path, typer.Option(help="The rows it was trained on.")],
    held_out: Annotated[Path | None, typer.Option(help="Rows it never saw: the baseline.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many rows of each file, drawn.", min=1)] = 200,
    canaries: Annotated[
        int | None, typer.Option(help="Write --out: the training rows with so many random secrets among them.", min=1)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rows for each canary.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Of canaries and drawn rows.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="With --canaries: the file to write.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say whether a model gives its training answers back word for word."""
    from tunesmith.data.load import load_examples
    from tunesmith.errors import InputError

    output = Output(as_json=as_json)
    if canaries is not None and (contender or out is None):
        todo = "Plant first: --train FILE --canaries N --out NEW. Train on NEW; then give adapter:DIR --train NEW."
        raise InputError("--canaries writes a file, named by --out, and measures nothing.", todo)
    if canaries is None and (contender is None or held_out is None):
        raise InputError("What is measured is not clear.", "Write: adapter:DIR --train FILE --held-out FILE.")
    rows = [source.example for source in load_examples(train).examples]
    if out is not None and canaries is not None:
        output.result(_plant(output, rows, count=canaries, repeats=repeats, seed=seed, out=out, force=force))
    elif contender is not None and held_out is not None:
        others = [source.example for source in load_examples(held_out).examples]
        known = _planted(train)
        rows = [row for row in rows if row.prompt not in {canary.prompt for canary in known}]
        rows, others = (_draw(side, limit, seed=seed) for side in (rows, others))
        output.result(_measure(output, contender, rows, held_out=others, canaries=known, seed=seed))


def _plant(
    output: Output, rows: Sequence[Example], *, count: int, repeats: int, seed: int, out: Path, force: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    from tunesmith.data.files import write_new_files
    from tunesmith.evaluate.canaries import canary_file, canary_lines, plant

    planted, canaries = plant(rows, count, repeats=repeats, seed=seed)
    secrets = canary_file(out)
    write_new_files({out: [row.to_json() for row in planted], secrets: canary_lines(canaries)}, force=force)
    output.say(f"wrote {out}: {len(planted)} rows, {count * repeats} of them with one of {count} canaries")
    output.say(f"wrote {secrets}: the secrets. Train on {out}, then: tunesmith memorise adapter:DIR --train {out}")
    output.say("A model trained on it is for this measurement only: it learns invented codes.")
    return {"out": str(out), "rows": len(planted), "canaries": [asdict(canary) for canary in canaries]}


def _measure(
    output: Output,
    spec: str,
    rows: Sequence[Example],
    *,
    held_out: Sequence[Example],
    canaries: Sequence[Canary],
    seed: int,
) -> dict[str, Any]:
    from tunesmith.evaluate.memorise import why_meaningless
    from tunesmith.generate import build_contenders

    (contender,) = build_contenders([spec], say=output.say)
    document: dict[str, Any] = {"contender": spec, "meaningless": why_meaningless(rows), "verbatim": None}
    if document["meaningless"]:
        output.say(f"Not measured: {document['meaningless']}")
    else:
        document["verbatim"] = _verbatim(output, contender, rows, held_out=held_out)
    if canaries:
        from tunesmith.evaluate.canaries import measure_exposure

        document["canaries"] = measure_exposure(contender, canaries, seed=seed)
        output.say(document["canaries"]["sentences"][0])
    elif document["meaningless"]:
        output.say("Canaries tell more on such a task: tunesmith memorise --train FILE --canaries 10 --out NEW")
    return document


def _verbatim(
    output: Output, contender: Contender, rows: Sequence[Example], *, held_out: Sequence[Example]
) -> dict[str, Any]:
    from tunesmith.evaluate.memorise import measure_memory
    from tunesmith.generate import reply_limit

    limit = reply_limit([*rows, *held_out], [contender])
    with output.progress() as bar:
        task = bar.add_task("asking", total=len(rows) + len(held_out))
        found = measure_memory(
            contender, rows, held_out=held_out, max_new_tokens=limit, progress=lambda done: bar.advance(task, done)
        )
    output.say(f"{found['rows']['train']} training rows against {found['rows']['held_out']} held-out ones:")
    for sentence in found["sentences"]:
        output.say(f"  {sentence}")
    return found


def _planted(train: Path) -> list[Canary]:
    from tunesmith.evaluate.canaries import canary_file, read_canaries

    path = canary_file(train)
    return read_canaries(path) if path.exists() else []


def _draw(rows: list[Example], limit: int, *, seed: int) -> list[Example]:
    return rows if len(rows) <= limit else random.Random(seed).sample(rows, limit)
