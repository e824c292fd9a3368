"""`tunesmith search`: the passages nearest to a question, or with --questions how often the right document is found.

Not here: searching (retrieve), intervals (evaluate.stats). Listed in cli.main.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.retrieve.search import Found, Index, Standing

SHOWN_CHARS = 300


def search(
    index: Annotated[Path, typer.Argument(help="The folder of an index (`tunesmith index`).")],
    question: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    *,
    k: Annotated[int, typer.Option("-k", "--count", help="How many passages.", min=1)] = 5,
    questions: Annotated[
        Path | None, typer.Option(help="JSONL of questions that name their documents: measure recall, not one search.")
    ] = None,
    question_key: Annotated[str, typer.Option(help="With --questions: the key of the question.")] = "question",
    as_json: JsonFlag = False,
) -> None:
    """Search an index, or measure how well it finds."""
    from tunesmith.errors import InputError
    from tunesmith.retrieve.search import open_index

    output = Output(as_json=as_json)
    if (question is None) == (questions is None):
        raise InputError("Give a question, or a file with --questions; not both.")
    opened = open_index(index)
    if questions:
        output.result(_measure(output, opened, questions, question_key))
    elif question is not None:
        (found,) = opened.search([question], k)
        _show(output, found)
        output.result({"question": question, "passages": [{**asdict(one), "source": one.source} for one in found]})


def _show(output: Output, found: list[Found]) -> None:
    if not found:
        output.say("No passage has a word of the question.")
    for rank, one in enumerate(found, start=1):
        legs = f"BM25 {_standing(one.bm25)}, dense {_standing(one.dense)}"
        output.say(f"{rank}. {one.source}  [{one.score:.3f}: {legs}]", style="bold")
        if one.question:
            output.say(f"   asked: {one.question}")
        text = " ".join(one.text.split())
        output.say(f"   {text[:SHOWN_CHARS]}{'...' if len(text) > SHOWN_CHARS else ''}")


def _standing(standing: Standing | None) -> str:
    return f"{standing.score:.2f} (rank {standing.rank})" if standing else "-"


def _measure(output: Output, index: Index, path: Path, key: str) -> dict[str, Any]:
    """Recall and MRR of each leg with 95 % intervals, and whether the fusion is worth it."""
    from tunesmith.evaluate.stats import mean_interval, paired_difference
    from tunesmith.retrieve.recall import measures, ranks, read_questions

    questions = read_questions(path, key=key)
    values = {leg: measures(found) for leg, found in ranks(index, questions).items()}
    legs = {
        leg: {name: asdict(mean_interval(row)) for name, row in measured.items()} for leg, measured in values.items()
    }
    rows = [
        (leg, *(f"{one['mean']:.3f} ({one['low']:.3f}-{one['high']:.3f})" for one in measured.values()))
        for leg, measured in legs.items()
    ]
    output.table(("leg", *legs["fused"]), rows, title=f"{len(questions):,} questions, 95 % intervals")
    difference = paired_difference(values["bm25"]["mrr"], values["fused"]["mrr"])
    if index.manifest.dense:
        spread = f"{difference.difference:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
        output.say(f"MRR of the fusion against words alone: {spread}, p = {difference.p:.3f}")
        if difference.high < 0:
            output.say("Words alone find more here: index again with --dense off.", style="yellow")
    return {"questions": len(questions), "legs": legs, "fused_minus_bm25_mrr": asdict(difference)}
