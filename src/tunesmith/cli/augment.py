"""`tunesmith augment`: rewordings of rows, or rows near to the border between two answers, drafted for review.

Not here: the drafts (data.drafts.make), running it (cli.generate). Listed in cli.main.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.generate import MaxRequestsOption, OutOption, SeedOption, TeacherOption, draft
from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.data.drafts.asks import How


def augment(
    file: Annotated[Path, typer.Argument(help="The rows to start from.")],
    teacher: TeacherOption,
    *,
    paraphrase: Annotated[bool, typer.Option("--paraphrase", help="The same questions in other words.")] = False,
    hard_negatives: Annotated[
        bool, typer.Option("--hard-negatives", help="Rows that look like another answer's, to tell the two apart.")
    ] = False,
    n: Annotated[int, typer.Option("--n", help="How many rows.", min=1)] = 200,
    out: OutOption = None,
    seed: SeedOption = 0,
    max_requests: MaxRequestsOption = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace drafts that exist.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Draft variations of rows with a teacher. They wait for `tunesmith review`."""
    from tunesmith.data.drafts.make import Order
    from tunesmith.errors import InputError

    if paraphrase == hard_negatives:
        raise InputError("augment makes one kind of rows at a time.", "Give --paraphrase or --hard-negatives.")
    how: How = "paraphrase" if paraphrase else "hard-negatives"
    order = Order(how, n, seed=seed, max_requests=max_requests)
    draft(Output(as_json=as_json), file, order=order, teacher=teacher, out=out, force=force)
