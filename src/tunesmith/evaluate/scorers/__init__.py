"""Scorers: (example, reply) -> a score from 0 to 1 with an explanation. Here is the list of them by name.

Not here: averages and intervals (stats), asking contenders (run).
Called by the surfaces through `make_scorer`; `run.evaluate` uses what it gives.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tunesmith.errors import InputError
from tunesmith.evaluate.scorers import labels as label_scorers
from tunesmith.evaluate.scorers import model, overlap, structure, text
from tunesmith.evaluate.scorers.function import python
from tunesmith.evaluate.scorers.judge import judge
from tunesmith.evaluate.scorers.score import Aggregate as Aggregate
from tunesmith.evaluate.scorers.score import Factory, Given
from tunesmith.evaluate.scorers.score import Score as Score
from tunesmith.evaluate.scorers.score import Scorer as Scorer
from tunesmith.evaluate.scorers.style import style
from tunesmith.evaluate.scorers.text import normalise as normalise

if TYPE_CHECKING:
    from tunesmith.contender import Contender

# name -> (its factory, how its argument is written: "" takes none, [in brackets] may be left out)
SCORERS: dict[str, tuple[Factory, str]] = {
    "exact": (text.exact, ""),
    "normalised": (text.normalised, ""),
    "contains": (text.contains, ""),
    "regex": (text.regex, "PATTERN"),
    "label": (label_scorers.label, ""),
    "json": (structure.same_json, ""),
    "json_valid": (structure.valid_json, ""),
    "json_schema": (structure.json_schema, "FILE"),
    "json_fields": (structure.json_fields, ""),
    "tool_call": (structure.tool_call, ""),
    "rouge_l": (overlap.rouge_l, ""),
    "chrf": (overlap.chrf, ""),
    "bleu": (overlap.bleu, ""),
    "similarity": (model.similarity, "[MODEL]"),
    "loss": (model.loss, ""),
    "perplexity": (model.loss, ""),
    "words": (text.limit_of("words"), "<8"),
    "chars": (text.limit_of("chars"), "<=280"),
    "sentences": (text.limit_of("sentences"), "1-3"),
    "banned": (text.banned, "FILE or PHRASE"),
    "required": (text.required, "FILE or PHRASE"),
    "style": (style, "FILE"),
    "judge": (judge, "CONTENDER+rubric:FILE"),
    "python": (python, "FILE.py:FUNCTION"),
    "stopped": (text.stopped, ""),
}


def make_scorer(
    spec: str, *, labels: Sequence[str] | None = None, build: Callable[[str], Contender] | None = None
) -> Scorer:
    """The scorer that `spec` names: a key of SCORERS, with `:argument` where it takes one.

    `build` makes the contender that judges from its line; unset, one of its own is loaded.
    Raises InputError for an unknown name (naming the nearest one), a bad or missing argument, or missing labels.
    """
    name, colon, argument = spec.partition(":")
    if name not in SCORERS:
        raise InputError(f"There is no scorer {name!r}.", _nearest_scorer(name))
    factory, form = SCORERS[name]
    if form and not form.startswith("[") and not argument:
        raise InputError(f"The scorer {name!r} needs an argument.", f"Write it as {name}:{form}.")
    if not form and colon:
        raise InputError(f"The scorer {name!r} takes no argument, {argument!r} was given.", f"Write only {name}.")
    return factory(argument, Given(labels or (), build or _build))


def _build(spec: str) -> Contender:
    from tunesmith.generate import build_contenders

    return build_contenders([spec])[0]


def _nearest_scorer(name: str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), SCORERS, n=1, cutoff=0.4)
    return f"Did you mean {near[0]!r}? Known: {', '.join(SCORERS)}." if near else f"Known: {', '.join(SCORERS)}."
