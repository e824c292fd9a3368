"""`tunesmith advise`: whether more rows would help, of which labels, and what else would make the data better.

Not here: the measuring (data.advising.advice). Listed in cli.main.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import JsonFlag, Output

if TYPE_CHECKING:
    from tunesmith.data.advising.advice import Advice
    from tunesmith.data.advising.curve import Curve, Point

SHOWN = 8


def advise(
    file: Annotated[Path, typer.Argument(help="The training rows.")],
    *,
    inputs: Annotated[
        Path | None, typer.Option(help="What people ask, without answers: rows or logged traffic.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the rows held out to measure.", min=0)] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Say what would make a data set better: more rows, of which labels, in one style, about what."""
    from tunesmith.data.advising.advice import advise as advise_rows
    from tunesmith.data.drafts.inputs import read_inputs
    from tunesmith.data.load import load_examples

    output = Output(as_json=as_json)
    rows = load_examples(file).examples
    advice = advise_rows(rows, inputs=read_inputs(inputs) if inputs else None, seed=seed)
    for curve in advice.curves:
        _say_curve(output, curve, num_rows=advice.num_rows)
    _say_labels(output, advice)
    _say_styles(output, advice)
    _say_gaps(output, advice)
    if advice.cannot:
        output.heading("What cannot be told")
        for sentence in advice.cannot:
            output.say(f"  {sentence}")
    output.result({"file": str(file)} | advice.as_dict())


def _say_curve(output: Output, curve: Curve, *, num_rows: int) -> None:
    from tunesmith.data.advising.advice import enough

    output.heading(f"More rows? The error of a fast proxy on '{curve.target}'")
    rows = [("measured", f"{point.rows:,}", _range(point)) for point in curve.measured]
    names = ("all rows", "twice as many", "four times")
    rows += [(name, f"{point.rows:,}", _range(point)) for name, point in zip(names, curve.expected, strict=True)]
    output.table(("", "rows", "error (95 of 100 times between)"), rows)
    now, double, *_ = curve.expected
    gain = f"Twice the rows: about {(now.error - double.error) * 100:.1f} points less error"
    output.say(
        f"{gain}; {'the rows are enough' if enough(curve) else 'more rows would help'}, as far as a proxy can tell."
    )
    if curve.num_rows < num_rows:
        output.say(f"Measured on a sample of {curve.num_rows:,} of {num_rows:,} rows.")


def _say_labels(output: Output, advice: Advice) -> None:
    if advice.few:
        output.heading(f"Labels with few rows ({len(advice.few)})")
        output.say("  " + _some([f"{label} ({count})" for label, count in advice.few.items()]))
    if advice.weak:
        taken = advice.curves[0].mistaken_for
        output.heading(f"Labels the proxy finds least ({len(advice.weak)})")
        rows = [(label, f"{recall:.0%}", taken.get(label, "")) for label, recall in advice.weak.items()]
        output.table(("label", "found", "mostly taken for"), rows[:SHOWN])
        output.say("  Rows that tell them apart: tunesmith augment FILE --hard-negatives --teacher ...")


def _say_styles(output: Output, advice: Advice) -> None:
    if not advice.styles:
        return
    output.heading("Answers in two styles")
    for split in advice.styles:
        output.say(f"  {split.feature}: {_short(split.most)} in {split.share:.1%}")
        for name, lines in split.others.items():
            output.say(f"    {_short(name)} in {len(lines)}: lines {_some([str(line) for line in lines])}")


def _say_gaps(output: Output, advice: Advice) -> None:
    if advice.gaps is None:
        return
    output.heading(f"Inputs far from every row ({len(advice.gaps)} clusters)")
    output.say(f"  {advice.covered:.0%} of the inputs are as near to a row as rows are to each other.")
    for gap in advice.gaps:
        output.say(f"  {gap.inputs} inputs ({gap.share:.1%}): {', '.join(gap.terms)}")
        for line, text in gap.examples:
            output.say(f"    line {line}: {_short(text)}")


def _range(point: Point) -> str:
    return f"{point.error:.1%} ({point.low * 100:.1f}-{point.high * 100:.1f})"


def _some(words: list[str]) -> str:
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else flat[:77] + "..."
