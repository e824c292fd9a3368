"""System prompts drafted from the data: the labels, the keys of the JSON, the length, two examples; and the best one.

Not here: what the form of the answers is (given), asking and scoring (given as a function).
Called by the command `decide`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.chat import Example, Message
from tunesmith.decide.rows import Choice, ids_of

OWN = "your own"
MAX_SHOWN_CHARS = 1200  # of an example inside a prompt
COMMON = 0.9  # share of the rows that must have the same system prompt, for another to take its place


@dataclass(frozen=True, slots=True)
class Task:
    """What is known of the answers. `fields`: key -> JSON types; `required`: the keys of every answer."""

    own: str
    labels: Sequence[str] = ()
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    words: tuple[int, int] = (1, 1)  # of an answer: the 10th and the 90th percentile


def own_prompt(examples: Sequence[Example]) -> str | None:
    """The system prompt of the rows, "" where they have none; None when it is not the same in nearly all."""
    texts = ["\n".join(turn.content for turn in one.prompt if _is_system(turn)) for one in examples]
    common = max(set(texts), key=texts.count)
    return common if texts.count(common) >= COMMON * len(texts) else None


def draft(task: Task, examples: Sequence[Example]) -> dict[str, str]:
    """Prompts by what they add to the user's own. `examples` (of the training rows) are quoted, two of them."""
    form = _form(task)
    shown = _shown(examples)
    start = task.own or "Answer the request."
    drafts = {}
    if form:
        drafts["form"] = f"{start}\n{form}"
    drafts["length"] = f"{start}\n{_length(task)}"
    if shown:
        drafts["examples"] = f"{start}\n\n{shown}"
        drafts["form, length and examples"] = "\n".join(filter(None, [start, form, _length(task)])) + f"\n\n{shown}"
    return drafts


def choose(
    drafts: Mapping[str, str], rows: Sequence[Example], *, mean_of: Callable[[str, Sequence[Example]], float]
) -> tuple[Choice, str]:
    """The prompt with the best mean on `rows`, the user's own (first in `drafts`) where none is better."""
    tried = {name: mean_of(text, rows) for name, text in drafts.items()}
    best = max(tried, key=lambda name: tried[name])  # of equal ones the first
    return Choice("prompt", best, tried, ids_of(rows)), drafts[best]


def _form(task: Task) -> str:
    if task.labels:
        return f"The possible answers are: {', '.join(task.labels)}.\nReply with exactly one of them, and nothing else."
    if not task.fields:
        return ""
    keys = [
        f'"{name}" ({" or ".join(sorted(types))}{"" if name in task.required else ", only if it applies"})'
        for name, types in task.fields.items()
    ]
    return f"Reply with one JSON object and nothing else. Its keys: {', '.join(keys)}."


def _length(task: Task) -> str:
    low, high = task.words
    if high <= 1:
        return "Reply with a single word."
    return f"Reply with {low} to {high} words." if low < high else f"Reply with {low} words."


def _shown(examples: Sequence[Example]) -> str:
    """Two short examples with different answers."""
    short = [one for one in examples if len(one.prompt[-1].content) + len(one.answer) <= MAX_SHOWN_CHARS]
    if len(short) < 2:
        return ""
    second = next((one for one in short[1:] if one.answer != short[0].answer), short[1])
    blocks = [f"Request: {one.prompt[-1].content}\nReply: {one.answer}" for one in (short[0], second)]
    return "Two examples.\n\n" + "\n\n".join(blocks)


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")
