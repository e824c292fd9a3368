"""`tunesmith evaluate`: contenders on the same held-out rows, with intervals and paired differences.

Not here: contenders (generate, cli.contenders), scores and statistics (evaluate). Listed in cli.main; the demo uses the
same pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.chat import Example
    from tunesmith.contender import Contender
    from tunesmith.evaluate.evaluation import Evaluation
    from tunesmith.evaluate.scorers import Scorer


def evaluate(
    test: Annotated[
        Path, typer.Argument(help="The held-out rows, JSONL; the last assistant turn is the expected answer.")
    ],
    *,
    contender: Annotated[
        list[str],
        typer.Option(
            help="base:M, adapter:DIR or url:http://...#model, each with +prompt:FILE, +fewshot:K[:nearest] or "
            "+rag:DOCS after it. The first is the one to beat."
        ),
    ],
    examples: Annotated[
        Path | None, typer.Option(help="Training rows that +fewshot: shows; never rows that are measured.")
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="exact (if unset), normalised, contains, label, json_fields, rouge_l, judge:CONTENDER, ... "
            "The first decides."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest reply, in tokens; from the longest expected answer if unset.", min=1)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Ask everything anew, and keep no reply.")] = False,
    out: Annotated[Path | None, typer.Option(help="Directory for report.html, report.json and replies.jsonl.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure contenders on the same rows, in the same way."""
    from tunesmith.chat import label_set
    from tunesmith.cli.contenders import make_builder
    from tunesmith.data.load import load_examples
    from tunesmith.evaluate.run import time_alone
    from tunesmith.evaluate.weights import weights_of
    from tunesmith.generate import reply_limit

    output = Output(as_json=as_json)
    loaded = load_examples(test)
    rows = [source.example for source in loaded.examples][:limit]
    shown = [source.example for source in load_examples(examples).examples] if examples else []
    builder = make_builder(output, examples=shown, use_cache=not no_cache)
    labels = label_set([*shown, *rows]) or []
    scorers = make_scorers(scorer or ["exact"], labels=labels, build=builder.build)
    contenders = builder.build_all(contender)
    limit_tokens = max_tokens or reply_limit(rows, contenders)
    evaluation = measure(output, rows, contenders=contenders, scorers=scorers, max_tokens=limit_tokens, labels=labels)
    evaluation = time_alone(evaluation, contenders, max_new_tokens=limit_tokens)
    show_evaluation(output, evaluation)
    show_aggregates(output, evaluation)
    show_speed(output, evaluation)
    if out:
        weights = {one.name: weights_of(one) for one in contenders}
        _write(output, evaluation, out, test={"file": str(test), "sha256": loaded.sha256}, weights=weights)
    output.result(evaluation.as_dict())


def make_scorers(
    names: Sequence[str], *, labels: Sequence[str] = (), build: Callable[[str], Contender] | None = None
) -> dict[str, Scorer]:
    """Scorers by the names that users write; `build` makes the contender of a judge."""
    from tunesmith.evaluate.scorers import make_scorer

    return {name: make_scorer(name, labels=labels, build=build) for name in names}


def measure(
    output: Output,
    examples: Sequence[Example],
    *,
    contenders: Sequence[Contender],
    scorers: Mapping[str, Scorer],
    max_tokens: int | None = None,
    labels: Sequence[str] | None = None,
    before: Evaluation | None = None,
) -> Evaluation:
    """Ask every contender every row, with a progress bar each; `before` as in `evaluate.run.evaluate`."""
    from tunesmith.evaluate.run import evaluate as evaluate_rows
    from tunesmith.generate import reply_limit

    limit = max_tokens or reply_limit(examples, contenders)
    with output.progress() as bar:
        tasks = {one.name: bar.add_task(_short(one.name), total=len(examples), start=False) for one in contenders}

        def advance(name: str, rows: int) -> None:
            bar.start_task(tasks[name])
            bar.advance(tasks[name], rows)

        return evaluate_rows(
            examples,
            contenders,
            scorers=scorers,
            max_new_tokens=limit,
            labels=labels,
            on_progress=advance,
            before=before,
        )


def show_evaluation(output: Output, evaluation: Evaluation) -> None:
    """Two tables: every contender's scores, and the paired differences by the main scorer."""
    document = evaluation.as_dict()
    scorers = list(evaluation.scorers)
    rows = [
        (
            _short(one["name"]),
            *(_interval(one["scores"][scorer]) for scorer in scorers),
            f"{one['latency_s']['mean'] * 1000:.0f} ms",
            f"{one['tokens']['prompt_mean']:.0f} + {one['tokens']['completion_mean']:.0f}",
        )
        for one in document["contenders"]
    ]
    output.table(("contender", *scorers, "per row", "tokens"), rows, title=f"{document['rows']} rows, 95 % intervals")
    several = len(document["contenders"]) > 2
    compared = [
        (
            f"{_short(one['b'])} - {_short(one['a'])}",
            f"{one['difference'] * 100:+.1f} points ({one['low'] * 100:+.1f} to {one['high'] * 100:+.1f})",
            f"{one['wins']} won, {one['losses']} lost",
            _p(one["p_holm" if several else "p"]),
        )
        for one in document["differences"]
        if one["scorer"] == scorers[0]
    ]
    if compared:
        tested = "p (Holm)" if several else "p"  # corrected for the number of pairs
        output.table((f"paired difference, {scorers[0]}", "", "", tested), compared)
    for one in document["contenders"]:
        for note in one["notes"]:
            output.say(f"{_short(one['name'])}: {note}", "yellow")


def show_aggregates(output: Output, evaluation: Evaluation) -> None:
    """The figures that only all rows together have, and what must be said of them."""
    aggregates = [
        (answers.name, scorer, aggregate)
        for scorer in evaluation.scorers
        for answers in evaluation.answers
        if (aggregate := answers.aggregates.get(scorer))
    ]
    rows = [
        (_short(name), scorer, figure, f"{one.mean:.3f} ({one.low:.3f} to {one.high:.3f})")
        for name, scorer, aggregate in aggregates
        for figure, one in aggregate.figures.items()
    ]
    if rows:
        output.table(("contender", "scorer", "over all rows", ""), rows)
    for name, _, aggregate in aggregates:
        for sentence in aggregate.sentences:
            output.say(f"{_short(name)}: {sentence}")


def show_speed(output: Output, evaluation: Evaluation) -> None:
    """Latency of one request, replies a second, cost, and how many replies were asked for before."""
    summaries = [answers.summary() for answers in evaluation.answers]
    rows = [
        (
            _short(one["name"]),
            _one_request(one["one_request_s"]),
            f"{one['replies_per_s']:.2f}" if one["replies_per_s"] else "-",
            "-" if one["cost"] is None else f"{one['cost'] / evaluation.rows * 1000:.4g}",
            f"{one['cached']} of {evaluation.rows}",
        )
        for one in summaries
    ]
    columns = ("contender", "one request, p50 / p95", "replies a second", "cost of 1,000", "kept from before")
    output.table(columns, rows)
    if sum(one["cached"] for one in summaries):
        text = "Kept replies and their times are those of then; --no-cache asks again."
        if any(one["cached"] and one["name"].startswith(("url:", "fewshot:url:", "rag:url:")) for one in summaries):
            text += " Nothing here sees whether a server has another model under that name by now."
        output.say(text)


def _one_request(seconds: Mapping[str, float] | None) -> str:
    return f"{seconds['p50'] * 1000:.0f} / {seconds['p95'] * 1000:.0f} ms" if seconds else "-"


def _write(
    output: Output, evaluation: Evaluation, out: Path, *, test: dict[str, str], weights: dict[str, dict[str, str]]
) -> None:
    from tunesmith import __version__, hardware
    from tunesmith.evaluate.report import write_report
    from tunesmith.runs import now

    report: dict[str, Any] = {
        "title": f"Evaluation on {Path(test['file']).name}",
        "created": now(),
        "tunesmith_version": __version__,
        "machine": hardware.detect().as_dict(),
        "test": test,
        "weights": weights,
        "evaluation": evaluation.as_dict(),
        "main_scorer": evaluation.scorers[0],
    }
    page = write_report(report, out)
    evaluation.write_replies(out / "replies.jsonl")
    output.say(f"Report: {page}")


def _interval(score: dict[str, float]) -> str:
    return f"{score['mean'] * 100:.1f} % ({score['low'] * 100:.1f}-{score['high'] * 100:.1f})"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _short(name: str) -> str:
    return name if len(name) <= 48 else name[:22] + "..." + name[-23:]
