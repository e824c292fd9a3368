"""`tunesmith evaluate`: contenders on the same held-out rows, with intervals and paired differences.

Not here: contenders (generate), scores and statistics (evaluate). Listed in cli.main; the demo uses the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.chat import Example
    from tunesmith.contender import Contender
    from tunesmith.evaluate.run import Evaluation


def evaluate(
    test: Annotated[
        Path, typer.Argument(help="The held-out rows, JSONL; the last assistant turn is the expected answer.")
    ],
    *,
    contender: Annotated[
        list[str],
        typer.Option(
            help="base:M, base:M+prompt:FILE, adapter:DIR or url:http://...#model. The first is the one to beat."
        ),
    ],
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="exact (if unset), normalised, contains, json, json_valid, json_fields, label, stopped, "
            "regex:PATTERN. The first decides."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest reply, in tokens; from the longest expected answer if unset.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for report.html, report.json and replies.jsonl.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure contenders on the same rows, in the same way."""
    from tunesmith.data.load import load_examples
    from tunesmith.generate import build_contenders

    output = Output(as_json=as_json)
    examples = [source.example for source in load_examples(test).examples][:limit]
    contenders = build_contenders(contender, say=output.say)
    evaluation = measure(output, examples, contenders=contenders, scorers=scorer or ["exact"], max_tokens=max_tokens)
    show_evaluation(output, evaluation)
    if out:
        _write(output, evaluation, out, test=test)
    output.result(evaluation.as_dict())


def measure(
    output: Output,
    examples: Sequence[Example],
    *,
    contenders: Sequence[Contender],
    scorers: Sequence[str],
    max_tokens: int | None = None,
    labels: Sequence[str] | None = None,
) -> Evaluation:
    """Ask every contender every row, with a progress bar each."""
    from tunesmith.chat import label_set
    from tunesmith.evaluate.run import evaluate as evaluate_rows
    from tunesmith.evaluate.scorers import make_scorer
    from tunesmith.generate import reply_limit

    known = label_set(examples) or [] if labels is None else list(labels)
    made = {spec: make_scorer(spec, labels=known) for spec in scorers}
    limit = max_tokens or reply_limit([example.answer for example in examples], contenders)
    with output.progress() as bar:
        tasks = {one.name: bar.add_task(_short(one.name), total=len(examples), start=False) for one in contenders}

        def advance(name: str, rows: int) -> None:
            bar.start_task(tasks[name])
            bar.advance(tasks[name], rows)

        return evaluate_rows(
            examples, contenders, scorers=made, max_new_tokens=limit, labels=known, on_progress=advance
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
    compared = [
        (
            f"{_short(one['b'])} - {_short(one['a'])}",
            f"{one['difference'] * 100:+.1f} points ({one['low'] * 100:+.1f} to {one['high'] * 100:+.1f})",
            f"{one['wins']} won, {one['losses']} lost",
            _p(one["p"]),
        )
        for one in document["differences"]
        if one["scorer"] == scorers[0]
    ]
    if compared:
        output.table((f"paired difference, {scorers[0]}", "", "", "p"), compared)


def _write(output: Output, evaluation: Evaluation, out: Path, *, test: Path) -> None:
    from tunesmith import __version__, hardware
    from tunesmith.evaluate.report import write_report
    from tunesmith.runs import now

    report: dict[str, Any] = {
        "title": f"Evaluation on {test.name}",
        "created": now(),
        "tunesmith_version": __version__,
        "machine": hardware.detect().as_dict(),
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
