"""What would make a data set better: more rows or not, of which labels, in one style, about what people really ask.

Not here: what is wrong in single rows (check), the measuring itself (curve, styles, coverage), printing (cli.advise).
Called by the command `advise`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.chat import Message
from tunesmith.data.advising.coverage import Gap, coverage_gaps
from tunesmith.data.advising.curve import Curve, learning_curve
from tunesmith.data.advising.styles import Split, length_split, style_splits
from tunesmith.data.checks.wording import normal_text, request_text
from tunesmith.data.drafts.form import Form, json_object, learn_form, single_turns
from tunesmith.data.load import SourceRow

MIN_ROWS = 40  # for a curve: an eighth of the rows must hold something
FEW = 10  # rows of a label
WEAK = 0.2  # a label's recall below the mean of all by this much
MAX_FIELDS, MAX_VALUES, ROWS_PER_VALUE = 3, 50, 5
ENOUGH = 0.01  # a doubling that lowers the error by less is not worth its work


@dataclass(frozen=True, slots=True)
class Advice:
    """`cannot`: what these rows do not tell, in sentences. `few`, `weak`: labels by their rows, and by their recall."""

    kind: str
    num_rows: int
    curves: Sequence[Curve]
    few: dict[str, int]
    weak: dict[str, float]
    styles: Sequence[Split]
    gaps: Sequence[Gap] | None  # None: no inputs were given
    covered: float | None
    cannot: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "rows": self.num_rows, "curves": [one.as_dict() for one in self.curves],
            "few_rows": self.few, "weak": self.weak, "styles": [one.as_dict() for one in self.styles],
            "gaps": None if self.gaps is None else [one.as_dict() for one in self.gaps], "covered": self.covered,
            "cannot_tell": list(self.cannot),
        }  # fmt: skip


def advise(
    rows: Sequence[SourceRow], *, inputs: Sequence[tuple[int, tuple[Message, ...]]] | None = None, seed: int = 0
) -> Advice:
    """Raises InputError when no row is one question and its answer."""
    used = [rows[index] for index in single_turns([row.example for row in rows])]
    form = learn_form([row.example for row in used])
    cannot = [f"{len(rows) - len(used)} rows of several turns or with tools were left out."] * (len(used) < len(rows))
    curves, reasons = _curves(used, form, seed)
    few, weak = _labels(used, form, curves)
    styles = [] if form.kind == "label" else style_splits(used)
    if form.kind == "text" and (split := length_split(used)):
        styles.append(split)
    gaps, covered = None, None
    if inputs:
        texts = [(line, "\n".join(turn.content for turn in turns if turn.role == "user")) for line, turns in inputs]
        gaps, covered = coverage_gaps([request_text(row.example) for row in used], texts)
    else:
        cannot.append("What people ask that no row is about: give their inputs with --inputs.")
    return Advice(form.kind, len(used), curves, few, weak, styles, gaps, covered, [*cannot, *reasons])


def enough(curve: Curve) -> bool:
    """Whether twice the rows would lower the error by less than ENOUGH."""
    now, double, *_ = curve.expected
    return now.error - double.error < ENOUGH


def _curves(rows: Sequence[SourceRow], form: Form, seed: int) -> tuple[list[Curve], list[str]]:
    if form.kind == "text":
        why = "Whether the rows are enough: a free text has no right answer that a fast proxy could learn. "
        return [], [why + "Train on half and on all of them, and compare with `tunesmith evaluate`."]
    texts = [request_text(row.example) for row in rows]
    groups = [normal_text(text) for text in texts]
    if len(set(groups)) < MIN_ROWS:
        return [], [f"Whether the rows are enough: a curve needs {MIN_ROWS} different questions."]
    targets = _targets(rows, form)
    if not targets:
        return [], ["Whether the rows are enough: no field of the JSON answers has few enough different values."]
    curves = [learning_curve(texts, values, groups=groups, target=name, seed=seed) for name, values in targets.items()]
    note = [] if form.kind == "label" else ["Of a JSON answer only fields with few different values are measured."]
    return curves, note


def _targets(rows: Sequence[SourceRow], form: Form) -> dict[str, list[str]]:
    """What a proxy can learn: the label, or the fields of a JSON answer that take few values, the most varied first."""
    if form.kind == "label":
        return {"answer": [row.example.answer.strip() for row in rows]}
    objects = [json_object(row.example.answer) or {} for row in rows]
    columns = {
        name: [json.dumps(value.get(name), ensure_ascii=False, sort_keys=True) for value in objects]
        for name in sorted(form.fields)
    }
    counts = {name: len(set(values)) for name, values in columns.items()}
    few = [name for name, count in counts.items() if 2 <= count <= min(MAX_VALUES, len(rows) // ROWS_PER_VALUE)]
    return {name: columns[name] for name in sorted(few, key=lambda name: -counts[name])[:MAX_FIELDS]}


def _labels(rows: Sequence[SourceRow], form: Form, curves: Sequence[Curve]) -> tuple[dict[str, int], dict[str, float]]:
    """Labels with fewer than FEW rows, fewest first, and those found far less often than the mean, worst first."""
    if form.kind != "label":
        return {}, {}
    counts = Counter(row.example.answer.strip() for row in rows)
    few = {label: count for label, count in reversed(counts.most_common()) if count < FEW}
    recall = curves[0].recall if curves else {}
    mean = sum(recall.values()) / len(recall) if recall else 0.0
    weak = sorted((value, label) for label, value in recall.items() if value < mean - WEAK)
    return few, {label: value for value, label in weak}
