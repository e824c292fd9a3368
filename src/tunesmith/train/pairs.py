"""Preference rows as the loop sees them: one prompt, two answers, both rendered as they would be for training on one.

Not here: rows with one answer (rows), the loss on pairs (objective), the model's own view of them (reference).
Called by train.run and train.prove.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.chat import Example
from tunesmith.errors import InputError
from tunesmith.render import Rendered, Renderer
from tunesmith.train.rows import Drop, Reason, Row, place_of, render_or_reason


def render_pairs(
    examples: Sequence[Example], renderer: Renderer, *, max_length: int, lines: Sequence[int] | None = None
) -> tuple[list[Row], list[Drop]]:
    """Every preference ends as a Row with both conversations, or as a Drop.

    What holds for a row holds for each of the two: nothing is cut, and each answer ends in a trained stop token. The
    tokens before the answers are the same, or the pair is dropped. Raises RunError for what is not rendered truthfully,
    InputError for rows that are no preferences.
    """
    _refuse_single_answers(examples, lines)
    rows: list[Row] = []
    drops: list[Drop] = []
    for index, example in enumerate(examples):
        where = place_of(index, lines)
        found = []
        for name, conversation in _conversations(example).items():
            at = f"{where} with its {name} answer"
            rendered = render_or_reason(conversation, renderer, max_length=max_length, where=at)
            if isinstance(rendered, Reason):
                drops.append(Drop(index, rendered.kind, f"with the {name} answer: {rendered.text}"))
                break
            found.append(rendered)
        else:
            chosen, rejected = found
            if reason := _unfit(chosen, rejected):
                drops.append(Drop(index, *reason))
            else:
                line = lines[index] if lines else None
                rows.append(Row(index, chosen, example.weight, line, rejected))
    return rows, drops


def apart(rows: Sequence[Row]) -> list[Row]:
    """Every conversation as a row of its own: what is checked and counted before the answers are compared."""
    return [Row(row.index, sequence, row.weight, row.line) for row in rows for sequence in row.sequences]


def _conversations(example: Example) -> dict[str, Example]:
    """The two conversations of a preference, each as an example that ends in its answer."""
    first = next(index for index, message in enumerate(example.messages) if message.trained)
    other = (*example.messages[:first], *example.rejected)
    return {
        "preferred": replace(example, rejected=()),
        "rejected": replace(example, messages=other, rejected=()),
    }


def _unfit(chosen: Rendered, rejected: Rendered) -> Reason | None:
    """Why the two do not make a pair."""
    if chosen.ids == rejected.ids:
        return Reason("with one answer twice", "in this base's template both answers are the same tokens")
    prompt, other = (sequence.ids[: sequence.trained.index(True)] for sequence in (chosen, rejected))
    if prompt != other:
        text = f"the template writes {len(prompt)} tokens before the preferred answer and others before the rejected"
        return Reason("with two prompts", text)
    return None


def _refuse_single_answers(examples: Sequence[Example], lines: Sequence[int] | None) -> None:
    for index, example in enumerate(examples):
        if example.kind != "preference":
            what = f"{place_of(index, lines)} is no pair of answers (format {example.kind}): method dpo compares two."
            todo = "Give it 'prompt', 'chosen' and 'rejected', or train with another method, such as lora."
            raise InputError(what, todo)
