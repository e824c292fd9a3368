"""Rows as the loop sees them: rendered, ordered, cut into batches; and what became of those that do not train.

Not here: files and line numbers (the caller joins them by index), how pairs of answers are rendered (pairs).
The order is a function of seed and epoch alone, so a resumed run goes on exactly where it stopped.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tunesmith.chat import Example, label_set
from tunesmith.errors import InputError, RunError
from tunesmith.render import Rendered, Renderer, RenderError
from tunesmith.trie import Trie, lay_out

SMALLEST_WEIGHT, LARGEST_WEIGHT = 2.0**-126, 2.0**127  # what float32 holds as a number, neither 0 nor infinite
MANY_DROPS = 0.1  # the share of dropped rows that is more than an odd one out


@dataclass(frozen=True, slots=True)
class Row:
    """One example ready to train: its place in the examples given, its tokens, its weight, its line in the file.

    A preference has the conversation with the answer that was not preferred as `rejected`, and, once it was computed,
    the `reference`: the log-probabilities (nats) that the model gives both answers before it is trained.
    """

    index: int
    rendered: Rendered
    weight: float
    line: int | None = None
    rejected: Rendered | None = None
    reference: tuple[float, float] | None = None

    @property
    def sequences(self) -> tuple[Rendered, ...]:
        """What is laid out for it: the conversation, and of a preference the other one."""
        return (self.rendered, self.rejected) if self.rejected else (self.rendered,)

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.ids) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class Drop:
    """An example that does not train: the kind of reason, and the reason."""

    index: int
    kind: str
    reason: str


def render_rows(
    examples: Sequence[Example], renderer: Renderer, *, max_length: int, lines: Sequence[int] | None = None
) -> tuple[list[Row], list[Drop]]:
    """Every example ends as a Row or a Drop. Nothing is cut: a row that does not fit is dropped whole.

    Raises RunError when rendering itself went wrong: a second BOS, an answer that is not trained as it is written and
    up to its stop token. Every row is looked at, not a sample. Raises InputError for rows of another method.
    """
    _refuse_other_methods(examples, lines)
    rows: list[Row] = []
    drops: list[Drop] = []
    for index, example in enumerate(examples):
        rendered = render_or_reason(example, renderer, max_length=max_length, where=place_of(index, lines))
        if isinstance(rendered, Reason):
            drops.append(Drop(index, *rendered))
        else:
            rows.append(Row(index, rendered, example.weight, lines[index] if lines else None))
    return rows, drops


class Reason(NamedTuple):
    """Why an example does not train: the kind, and in words."""

    kind: str
    text: str


def render_or_reason(example: Example, renderer: Renderer, *, max_length: int, where: str) -> Rendered | Reason:
    """One conversation as tokens, or why it does not train. Raises RunError as `render_rows`; `where` names the row."""
    try:
        rendered = renderer.render(example)
    except RenderError as error:
        return Reason("refused by the template", str(error))
    length = len(rendered.ids)
    if length > max_length:
        return Reason("too long", f"{length} tokens do not fit the longest row of {max_length}")
    if not any(rendered.trained[1:]):
        return Reason("without anything to train", "no token of it is trained")
    if not SMALLEST_WEIGHT <= example.weight <= LARGEST_WEIGHT:
        return Reason("of unusable weight", f"its weight {example.weight} is 0 or infinite in float32")
    if fault := _fault(example, rendered, renderer):
        raise RunError(f"{where} is not rendered truthfully: {fault}.", "Use another base, and report this one.")
    return rendered


def place_of(index: int, lines: Sequence[int] | None) -> str:
    return f"Line {lines[index]}" if lines else f"Example {index + 1}"


def _refuse_other_methods(examples: Sequence[Example], lines: Sequence[int] | None) -> None:
    """Rows that say more, or less, than one answer to learn are not half used."""
    methods = {"preference": ("two answers, one preferred", "dpo"), "rl": ("no answer to learn", "grpo")}
    for index, example in enumerate(examples):
        if example.kind in methods:
            holds, method = methods[example.kind]
            what = f"{place_of(index, lines)} holds {holds} (format {example.kind}): that is for the method {method}."
            todo = "This method trains on single answers: give it chat, prompt/completion or text"
            todo += ", or set method=dpo (--set method=dpo)." if method == "dpo" else "."
            raise InputError(what, todo)


def _fault(example: Example, rendered: Rendered, renderer: Renderer) -> str | None:
    """What is wrong with a rendered row, as a second look at what the renderer proves by its construction."""
    ids, trained = rendered.ids, rendered.trained
    if ids[0] == ids[1] == renderer.tokenizer.bos_token_id:
        return "it begins with two begin-of-sequence tokens"
    for token, here, after in zip(ids, trained, (*trained[1:], False), strict=True):
        if here and not after and token not in renderer.stop_ids:
            return "an answer does not end in a stop token; the model would never learn to stop"
    found = renderer.decode([token for token, here in zip(ids, trained, strict=True) if here])
    turns = [message for message in example.messages if message.trained]
    if any(turn.tool_calls for turn in turns):  # the template's own form: what must be in it
        wanted = [text for turn in turns for text in (turn.content, *(call.name for call in turn.tool_calls))]
        lost = [text for text in wanted if _bare(text) not in _bare(found)]
        return f"what is trained lacks {lost[0][:40]!r}" if lost else None
    answers = "".join(turn.content for turn in turns)
    backend = renderer.tokenizer.backend_tokenizer
    if _bare(found) == _bare(answers):
        return None
    if _bare(found) == _bare(renderer.decode(backend.encode(answers, add_special_tokens=False).ids)):
        return None  # the tokenizer normalises what it reads
    return f"what is trained reads {found[:40]!r}, the answer {answers[:40]!r}"


def _bare(text: str) -> str:
    return "".join(text.split())  # templates trim answers, tokenizers put a space before them


def drops_in_words(drops: Sequence[Drop], num_examples: int) -> str:
    """How many rows do not train, by kind of reason."""
    kinds = Counter(drop.kind for drop in drops).most_common()
    return f"{len(drops)} of {num_examples} rows are dropped: " + ", ".join(f"{count} {kind}" for kind, count in kinds)


def loud_drops(drops: Sequence[Drop], examples: Sequence[Example]) -> list[str]:
    """Why somebody should not go on before having read the ledger; empty when a few odd rows are dropped."""
    warnings = []
    if len(drops) > MANY_DROPS * len(examples):
        warnings.append(
            f"{drops_in_words(drops, len(examples))}. That is {len(drops) / len(examples):.0%} of the data."
        )
    dropped = {drop.index for drop in drops}
    kept = {example.answer.strip() for index, example in enumerate(examples) if index not in dropped}
    if lost := [label for label in label_set(examples) or () if label not in kept]:
        names = ", ".join(repr(label) for label in lost[:5]) + (" and others" if len(lost) > 5 else "")
        warnings.append(f"Every row with the answer {names} is dropped: the model will not learn it.")
    return warnings


def batches(rows: Sequence[Row], *, seed: int, epoch: int, batch_size: int) -> list[list[Row]]:
    """The batches of one epoch: a permutation drawn from (seed, epoch), cut into pieces of `batch_size`."""
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    return [[rows[place] for place in order[start : start + batch_size]] for start in range(0, len(rows), batch_size)]


def micro_batches(batch: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Cut a batch, in order, so that each piece has at most `max_tokens` tokens (or is one row, or pair)."""
    piece: list[Row] = []
    size = 0
    for row in batch:
        if piece and size + row.num_tokens > max_tokens:
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += row.num_tokens
    if piece:
        yield piece


def lay_out_rows(rows: Sequence[Row], *, share: bool) -> Trie:
    """All sequences of the rows as one trie: the label's owner counts sequences, a row's own next to one another."""
    sequences = [sequence for row in rows for sequence in row.sequences]
    return lay_out(sequences, [row.weight for row in rows for _ in row.sequences], share=share)


def rows_sha256(batch: Sequence[Row]) -> str:
    """What a batch is made of, in order, as 16 hex digits: a resumed run shows the same ones."""
    return hashlib.sha256(" ".join(str(row.index) for row in batch).encode()).hexdigest()[:16]


def label_weight(rows: Sequence[Row]) -> float:
    """The sum of the label weights: what a batch's loss is divided by. The first token of a row is never a label."""
    return sum(row.weight * sum(row.rendered.trained[1:]) for row in rows)
