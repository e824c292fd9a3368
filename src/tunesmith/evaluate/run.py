"""The evaluation: the same prompts to every contender, every reply scored, a few asked alone for their latency.

Not here: how contenders answer (contender, generate), what was found (evaluation), words (verdict), pages (report).
Called by cli.evaluate, whose pieces the demo uses too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tunesmith.chat import Example, label_set
from tunesmith.contender import Contender, Reply, innermost, layers
from tunesmith.errors import InputError, RunError
from tunesmith.evaluate.evaluation import Answers, Evaluation, prompt_text
from tunesmith.evaluate.scorers.score import Aggregate, Asked, Scored, Scorer

OnProgress = Callable[[str, int], None]  # (contender's name, rows just finished; 0 when it begins)
ALONE_ROWS, FEWEST_ALONE, ALONE_S = 8, 3, 5.0  # asked one at a time for their latency: fewer where that takes long


def evaluate(
    examples: Sequence[Example],
    contenders: Sequence[Contender],
    *,
    scorers: Mapping[str, Scorer],
    max_new_tokens: int,
    labels: Sequence[str] | None = None,
    on_progress: OnProgress | None = None,
    before: Evaluation | None = None,
) -> Evaluation:
    """Ask every contender the prompt of every example and score the replies.

    `before` is an evaluation of the same rows by the same scorers: its contenders stand first and are not asked again.

    `scorers` maps the name used in the report to a scorer; the first is the main one. `labels` None: labels are
    looked for in the expected answers (`label_set`); an empty list says there are none.
    Raises InputError before any contender is asked when there is nothing to ask, two contenders share a name, a
    scorer cannot be used on a row, or a row is among the examples that a contender shows; RunError when a contender
    gives the wrong number of replies.
    """
    _check(examples, contenders, scorers=scorers)
    earlier = _rescored(before, examples, scorers=scorers) if before else []
    _refuse_same_names([*(answers.name for answers in earlier), *(contender.name for contender in contenders)])
    prompts = [example.prompt for example in examples]
    replies = []
    for contender in contenders:
        progress = _progress_of(contender.name, on_progress)
        if progress:
            progress(0)  # it begins: the time of its first batch counts
        got = contender.answer(prompts, max_new_tokens=max_new_tokens, progress=progress)
        if len(got) != len(prompts):
            raise RunError(
                f"{contender.name} gave {len(got)} replies to {len(prompts)} prompts.", "Nothing was scored."
            )
        replies.append(list(got))
    first = earlier[0].replies if earlier else replies[0]
    alone = len(earlier) + len(replies) == 1
    answers = [
        _score(Asked(examples, own, contender, first, is_first=own is first, is_alone=alone), scorers)
        for contender, own in zip(contenders, replies, strict=True)
    ]
    found = label_set(examples) if labels is None else [label.strip() for label in labels]
    return Evaluation(tuple(examples), (*earlier, *answers), tuple(scorers), tuple(found or ()))


def time_alone(
    evaluation: Evaluation, contenders: Sequence[Contender], *, max_new_tokens: int, rows: int = ALONE_ROWS
) -> Evaluation:
    """The evaluation with the latency of single requests. A contender that was asked in batches is asked again, one
    row at a time, for a few rows drawn from all over the file; the requests of others were single ones."""
    drawn = random.Random(0).sample(evaluation.examples, min(rows, evaluation.rows))
    timed = {answers.name: answers for answers in evaluation.answers}
    for contender in contenders:
        replies = timed[contender.name].replies
        if getattr(innermost(contender), "batched", False):
            replies = []
            for example in drawn:
                replies += contender.answer([example.prompt], max_new_tokens=max_new_tokens)
                if len(replies) >= FEWEST_ALONE and sum(reply.latency_s for reply in replies) > ALONE_S:
                    break
        alone_s = tuple(reply.latency_s for reply in replies)
        timed[contender.name] = replace(timed[contender.name], alone_s=alone_s)
    return replace(evaluation, answers=tuple(timed.values()))


def _score(asked: Asked, scorers: Mapping[str, Scorer]) -> Answers:
    """The answers of one contender, scored once all have answered: a judge compares them."""
    scored: dict[str, Scored] = {name: scorer.score_rows(asked) for name, scorer in scorers.items()}
    scores = {name: one.scores for name, one in scored.items()}
    aggregates = {name: one.aggregate for name, one in scored.items() if one.aggregate != Aggregate()}
    replies = list(asked.replies)
    notes = [note for layer in layers(asked.contender) if hasattr(layer, "notes") for note in layer.notes(replies)]
    speed = _replies_per_s(asked.contender, replies)
    return Answers(asked.contender.name, replies, scores, aggregates, tuple(notes), speed)


def _rescored(before: Evaluation, examples: Sequence[Example], *, scorers: Mapping[str, Scorer]) -> list[Answers]:
    """The answers of an earlier evaluation. One that was alone there is now what the others are compared with."""
    if (before.examples, before.scorers) != (tuple(examples), tuple(scorers)):
        raise InputError("The evaluation before is of other rows or scorers.", "Measure both on the same ones.")
    answers = list(before.answers)
    if len(answers) == 1:
        compared = {name: first for name, scorer in scorers.items() if (first := scorer.of_first(len(examples)))}
        scores = answers[0].scores | {name: first.scores for name, first in compared.items()}
        aggregates = {name: one for name, one in answers[0].aggregates.items() if name not in compared}
        answers[0] = replace(answers[0], scores=scores, aggregates=aggregates)
    return answers


def _replies_per_s(contender: Contender, replies: Sequence[Reply]) -> float | None:
    """From the time of each row, and how many requests go side by side; None where no time was measured."""
    total_s = sum(reply.latency_s for reply in replies)
    return len(replies) * getattr(innermost(contender), "concurrency", 1) / total_s if total_s else None


def _check(examples: Sequence[Example], contenders: Sequence[Contender], *, scorers: Mapping[str, Scorer]) -> None:
    if not examples:
        raise InputError("There is no row to evaluate.", "Give a file with at least one example.")
    if not contenders:
        raise InputError("There is no contender to ask.", "Name at least one.")
    if not scorers:
        raise InputError("There is no scorer.", "Name at least one, such as exact.")
    for contender in contenders:
        _refuse_shown(contender, examples)
        for scorer in scorers.values():
            scorer.check_contender(contender)
    for row, example in enumerate(examples, start=1):
        if fault := _why_not_asked(example):
            raise InputError(f"Row {row} {fault}.", "Take such rows out of the file.")
        for name, scorer in scorers.items():
            try:
                scorer.check(example)
            except InputError as error:
                raise InputError(f"Row {row}, scorer {name!r}: {error.message}", error.todo) from error


def _refuse_same_names(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Two contenders have the name {twice[0]!r}.", "Name each contender once.")


def _refuse_shown(contender: Contender, examples: Sequence[Example]) -> None:
    """A contender that shows examples would be shown the answer to a row that is among them."""
    shown = [shot for layer in layers(contender) for shot in getattr(layer, "examples", ())]
    places = {_normal_text(shot): place for place, shot in enumerate(shown, start=1)}
    both = [(row, places[text]) for row, one in enumerate(examples, start=1) if (text := _normal_text(one)) in places]
    if both:
        row, place = both[0]
        what = f"{len(both)} of the rows are also among the examples of {contender.name}; row {row} is example {place}."
        raise InputError(what, "It would be shown the answers: take these rows out of the examples.")


def _normal_text(example: Example) -> str:
    """Equal for the same question in whatever case and spacing."""
    return " ".join(prompt_text(example).casefold().split())


def _why_not_asked(example: Example) -> str | None:
    """What a contender would be asked less than, or a scorer would compare with nothing."""
    if example.tools:
        return "offers tools, which contenders are not given yet"
    if example.kind == "text":
        return "is a plain text: there is no question in it"
    return "has no answer to compare a reply with" if example.kind == "rl" else None


def _progress_of(name: str, on_progress: OnProgress | None) -> Callable[[int], None] | None:
    if on_progress is None:
        return None
    return lambda rows: on_progress(name, rows)
