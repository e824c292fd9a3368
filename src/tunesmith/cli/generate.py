"""`tunesmith generate` and the work it shares with `augment`: drafts from a teacher, written for review.

Not here: the drafts (data.drafts.make). Listed in cli.main.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.contender import Contender
    from tunesmith.data.drafts.asks import How
    from tunesmith.data.drafts.make import Made, Order
    from tunesmith.data.load import SourceRow

TeacherOption = Annotated[
    str,
    typer.Option(help="Who drafts: https://host/v1#model (key in TUNESMITH_API_KEY), a base's name, or adapter:DIR."),
]
OutOption = Annotated[Path | None, typer.Option(help="Where the drafts go; beside the file if unset.")]
SeedOption = Annotated[int, typer.Option(help="Of what the teacher is shown.", min=0)]
MaxRequestsOption = Annotated[int, typer.Option(help="The most requests; 0: four times what would do.", min=0)]


def generate(
    like: Annotated[Path, typer.Option(help="Rows to imitate.")],
    teacher: TeacherOption,
    *,
    n: Annotated[int, typer.Option("--n", help="How many rows.", min=1)] = 200,
    inputs: Annotated[
        Path | None, typer.Option(help="Answer these inputs (rows without answers, logged traffic) instead.")
    ] = None,
    out: OutOption = None,
    seed: SeedOption = 0,
    max_requests: MaxRequestsOption = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace drafts that exist.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Draft new rows with a teacher. They wait for `tunesmith review` and are not trained on before."""
    from tunesmith.data.drafts.inputs import read_inputs
    from tunesmith.data.drafts.make import Order

    asked = read_inputs(inputs) if inputs else []
    how: How = "answer" if inputs else "generate"
    order = Order(how, len(asked) if inputs else n, seed=seed, max_requests=max_requests, inputs=asked)
    draft(Output(as_json=as_json), like, order=order, teacher=teacher, out=out, force=force)


def draft(output: Output, like: Path, *, order: Order, teacher: str, out: Path | None, force: bool) -> None:
    """Make the drafts with a progress bar and write them; replies are kept beside them as they come."""
    from dataclasses import replace

    from tunesmith.data.drafts.make import LOCAL_ROUND, make
    from tunesmith.data.files import write_new_files
    from tunesmith.errors import InputError

    path = out or like.with_name(f"{like.stem}.{order.how}.jsonl")
    if path.exists() and not force:
        raise InputError(f"{path} exists already; nothing was asked.", "Use --force, or another --out.")
    rows = _seeds(output, like)
    contender = _teacher(output, teacher)
    if not teacher.startswith(("http://", "https://", "url:")):
        order = replace(order, round_size=LOCAL_ROUND)
    journal = path.with_name(path.name + ".replies")
    output.say(f"{order.how}: {order.n} rows, at most {order.request_limit} requests to {contender.name}.")
    with output.progress() as bar:
        task = bar.add_task("drafts", total=order.n)
        made = make(rows, contender, order=order, journal=journal, on_progress=lambda taken: bar.advance(task, taken))
    if made.drafts:
        write_new_files({path: [example.to_json() for example in made.drafts]}, force=force)
    _say_made(output, made, path, journal=journal, asked_for=order.n)
    output.result(
        {"out": str(path) if made.drafts else None, "replies": str(journal), "teacher": contender.name} | made.as_dict()
    )
    if not made.drafts:
        raise typer.Exit(1)


def _seeds(output: Output, like: Path) -> list[SourceRow]:
    """The rows that can be imitated: one question and its answer, written or approved by a person."""
    from tunesmith.data.drafts.form import single_turns
    from tunesmith.data.load import load_examples
    from tunesmith.data.versions.decisions import is_pending

    rows = [row for row in load_examples(like).examples if not is_pending(row.example)]
    used = [rows[index] for index in single_turns([row.example for row in rows])]
    if len(used) < len(rows):
        output.say(
            f"{len(rows) - len(used)} rows of {like} have several turns or tools, and are not imitated.", "yellow"
        )
    return used


def _teacher(output: Output, spec: str) -> Contender:
    from tunesmith.specs import is_spec, parse_spec, remote_contender

    if spec.startswith(("http://", "https://", "url:")):
        return remote_contender(parse_spec(spec if spec.startswith("url:") else f"url:{spec}"))
    from tunesmith.generate import build_contenders

    return build_contenders([spec if is_spec(spec) else f"base:{spec}"], say=output.say)[0]


def _say_made(output: Output, made: Made, path: Path, *, journal: Path, asked_for: int) -> None:
    output.say()
    if made.reasons:
        output.table(("not taken because", "rows"), made.reasons.most_common())
    before = f", {made.requests_before} of them kept from before" if made.requests_before else ""
    output.say(f"{made.requests} requests{before}: {made.prompt_tokens:,} + {made.completion_tokens:,} tokens.")
    if made.stopped:
        output.say(f"{len(made.drafts)} of {asked_for} rows: {made.stopped}.", "yellow")
    if not made.drafts:
        output.say(f"No row of this form came back; nothing was written. Read the replies in {journal}.", "red")
        return
    output.say(f"wrote {len(made.drafts)} drafts to {path}; the replies are in {journal}.")
    output.say(f"Next: tunesmith review {path}", "green")
