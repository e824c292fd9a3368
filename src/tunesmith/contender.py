"""Contender: anything that answers, and what asks it otherwise: another prompt, examples before, passages beside.

Not here: models in memory (generate), servers (remote), how one is written in a line (specs).
Everything that evaluates, compares, serves or monitors speaks to this. What a model is asked is never trimmed in
silence: whole examples or passages are left out and counted, and a prompt that still does not fit is an error.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tunesmith.chat import Example, Message
from tunesmith.errors import InputError

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that may answer a question, where it stands, and how well it fits (higher is better)."""

    text: str
    source: str
    score: float


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `latency_s` is the time this row took; in a batch, the batch's time divided by its rows."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    finish_reason: str  # "stop": the model ended its turn; "length": the limit did
    cost: float | None = None  # what its server charges, in the currency of the prices given; None: not known
    examples: int = 0  # shown before the question
    passages: tuple[Passage, ...] = ()  # shown beside the question, the best first
    cached: bool = False  # given before; all figures are those of then

    @property
    def stopped(self) -> bool:
        return self.finish_reason == "stop"


Done = Callable[[int, Reply], None]  # (which prompt, its reply)
Retrieve = Callable[[str], list[Passage]]
Nearest = Callable[[str, int], list[int]]  # (question, k) -> positions of the nearest k texts, best first


class Contender(Protocol):
    """Messages in, replies out, in the same order. `progress` is called with the number of rows just finished.

    It may have, too: `answer_each(prompts, *, max_new_tokens, done)`, which gives each reply as it is there;
    `room(messages)`, how many tokens its context leaves a reply; `identity`, a text that changes whenever its replies
    may; `batched`, True when a reply's latency is a share of a batch's; `inner`, whom it asks.
    """

    name: str

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]: ...


def collect(
    answer_each: Callable[..., None],
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    progress: Progress | None,
) -> list[Reply]:
    """`answer` in terms of `answer_each`."""
    replies: dict[int, Reply] = {}

    def done(row: int, reply: Reply) -> None:
        replies[row] = reply
        if progress:
            progress(1)

    answer_each(prompts, max_new_tokens=max_new_tokens, done=done)
    return [replies[row] for row in range(len(prompts))]


# -- one contender inside another ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """What is asked in place of some messages, with what was put in, and how long finding it took."""

    messages: Sequence[Message]
    examples: int = 0
    passages: tuple[Passage, ...] = ()
    seconds: float = 0.0


class Layer(ABC):
    """A contender that asks another one, `inner`, in its own way."""

    def __init__(self, inner: Contender, name: str) -> None:
        self.inner = inner
        self.name = name

    @abstractmethod
    def show(self, messages: Sequence[Message], max_new_tokens: int | None) -> Shown:
        """What is asked. As much is put in as leaves room for the reply; all of it when `max_new_tokens` is None."""

    def answer(
        self, prompts: Sequence[Sequence[Message]], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        shown = [self.show(messages, max_new_tokens) for messages in prompts]
        asked = [one.messages for one in shown]
        replies = self.inner.answer(asked, max_new_tokens=max_new_tokens, progress=progress)
        return [
            replace(
                reply,
                latency_s=reply.latency_s + one.seconds,
                examples=reply.examples + one.examples,
                passages=(*one.passages, *reply.passages),
            )
            for one, reply in zip(shown, replies, strict=True)
        ]


def layers(contender: Any) -> Iterator[Any]:
    """The contender, whom it asks, and so on; the model or server is the last."""
    while contender is not None:
        yield contender
        contender = getattr(contender, "inner", None)


def innermost(contender: Contender) -> Any:
    """The model or server that answers in the end."""
    return list(layers(contender))[-1]


def as_asked(contender: Contender, messages: Sequence[Message], *, max_new_tokens: int | None) -> Sequence[Message]:
    """What the innermost contender is asked in the end; `max_new_tokens` as in `Layer.show`."""
    for layer in layers(contender):
        if isinstance(layer, Layer):
            messages = layer.show(messages, max_new_tokens).messages
    return messages


def fits(contender: Contender, messages: Sequence[Message], *, max_new_tokens: int) -> bool:
    """Whether the prompt, as asked in the end, leaves room for the reply; True where only a server can say."""
    room = getattr(innermost(contender), "room", None)
    return room is None or room(as_asked(contender, messages, max_new_tokens=None)) >= max_new_tokens


def question_of(messages: Sequence[Message]) -> str:
    """What is looked for in examples and documents: the last user turn."""
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


class PromptedContender(Layer):
    """Another contender with its system prompt replaced: the same rows, asked in other words."""

    def __init__(self, inner: Contender, system: str, *, name: str) -> None:
        super().__init__(inner, name)
        self.system = Message("system", system)

    def show(self, messages: Sequence[Message], max_new_tokens: int | None) -> Shown:
        return Shown((self.system, *(message for message in messages if not _is_system(message))))


class FewShotContender(Layer):
    """Shows k solved examples before the question, as turns of user and assistant after the system prompt.

    Without `nearest` the same k for all rows, in the same order, so that the block is computed once. With it, which
    searches the questions of `examples` as `shots_of` gives them, the k nearest to each question; the nearest stands
    last, beside the question (Liu et al. 2022, arXiv:2101.06804).
    Raises InputError when there are fewer than k examples to show.
    """

    def __init__(
        self, inner: Contender, examples: Sequence[Example], *, k: int, nearest: Nearest | None = None, name: str = ""
    ) -> None:
        super().__init__(inner, name or f"{inner.name}+fewshot:{k}{':nearest' if nearest else ''}")
        self.examples = shots_of(examples)
        self.k = k
        self.nearest = nearest
        if not 0 < k <= len(self.examples):
            what = f"{self.name} is to show {k} examples, and there are {len(self.examples)} to choose from."
            raise InputError(what, "Give more (rows of questions and answers without tools), or a smaller k.")
        self._fixed = spread(self.examples)

    def show(self, messages: Sequence[Message], max_new_tokens: int | None) -> Shown:
        start = time.perf_counter()
        best = self._best(question_of(messages))
        while True:
            shots = [self.examples[place] for place in (reversed(best) if self.nearest else best)]
            turns = [turn for shot in shots for turn in shot.messages if not _is_system(turn)]
            head = [message for message in messages if _is_system(message)]
            asked = (*head, *(replace(turn, trained=False) for turn in turns), *messages[len(head) :])
            if not best or max_new_tokens is None or fits(self.inner, asked, max_new_tokens=max_new_tokens):
                return Shown(asked, len(best), seconds=time.perf_counter() - start if self.nearest else 0.0)
            best = best[:-1]

    def notes(self, replies: Sequence[Reply]) -> list[str]:
        """What must be said of a set of replies."""
        return _fewer([reply.examples for reply in replies], self.k, what="examples")

    def _best(self, question: str) -> list[int]:
        """The nearest, filled up with the fixed ones where fewer have anything in common with the question."""
        near = self.nearest(question, self.k) if self.nearest else []
        return list(dict.fromkeys([*near, *self._fixed]))[: self.k]


def shots_of(examples: Sequence[Example]) -> list[Example]:
    """The rows that can be shown: conversations that end in an answer, without tools."""
    return [row for row in examples if row.kind == "chat" and row.answer and not row.tools and not _calls(row)]


def _calls(example: Example) -> bool:
    return any(message.tool_calls or message.role == "tool" for message in example.messages)


def spread(examples: Sequence[Example]) -> list[int]:
    """All places in a seeded order in which those whose answer was not there yet come first: k of them show as many
    different labels as k can."""
    order = random.Random(0).sample(range(len(examples)), len(examples))
    first: dict[str, int] = {}
    for place in order:
        first.setdefault(examples[place].answer.strip(), place)
    return list(dict.fromkeys([*first.values(), *order]))


class RetrievalContender(Layer):
    """Puts the passages that `retrieve` finds for the last user turn before it, numbered and with their sources."""

    def __init__(self, inner: Contender, retrieve: Retrieve, *, name: str = "") -> None:
        super().__init__(inner, name or f"{inner.name}+rag")
        self.retrieve = retrieve
        self._found: dict[str, Shown] = {}  # the same question is looked up once

    def show(self, messages: Sequence[Message], max_new_tokens: int | None) -> Shown:
        question = question_of(messages)
        if question not in self._found:
            start = time.perf_counter()
            passages = tuple(self.retrieve(question))
            self._found[question] = Shown((), passages=passages, seconds=time.perf_counter() - start)
        found = self._found[question]
        passages = found.passages
        while True:
            asked = with_passages(messages, passages)
            if not passages or max_new_tokens is None or fits(self.inner, asked, max_new_tokens=max_new_tokens):
                return Shown(asked, passages=passages, seconds=found.seconds)
            passages = passages[:-1]

    def notes(self, replies: Sequence[Reply]) -> list[str]:
        """What must be said of a set of replies."""
        found = max((len(one.passages) for one in self._found.values()), default=0)
        return _fewer([len(reply.passages) for reply in replies], found, what="passages")


def with_passages(messages: Sequence[Message], passages: Sequence[Passage]) -> Sequence[Message]:
    """The messages with the passages at the head of the last user turn; as they are when there are none."""
    places = [place for place, message in enumerate(messages) if message.role == "user"]
    if not passages or not places:
        return messages
    last = places[-1]
    listed = "\n\n".join(f"[{number}] {one.source}\n{one.text}" for number, one in enumerate(passages, start=1))
    content = f"Passages that may help:\n\n{listed}\n\n{messages[last].content}"
    return (*messages[:last], replace(messages[last], content=content), *messages[last + 1 :])


def _fewer(counts: Sequence[int], k: int, *, what: str) -> list[str]:
    short = [count for count in counts if count < k]
    if not short:
        return []
    return [f"{len(short)} of {len(counts)} rows were shown fewer than {k} {what} (the fewest: {min(short)}): "
            f"no more were found, or no more fit the model's context."]  # fmt: skip


# -- what contenders of a line need beside a model -------------------------------------------------------------------


def _itself(contender: Contender) -> Contender:
    return contender


@dataclass(frozen=True, slots=True)
class Parts:
    """What contenders are put together of, beside models: given by the surface, which alone knows all of it.

    `examples` are for few-shot prompts; `search_texts` makes a search over texts (`retrieve.nearest`); `open_index`
    gives the search of an index or of documents for so many passages; `keep` puts a memory around a model.
    """

    examples: Sequence[Example] = ()
    search_texts: Callable[[Sequence[str]], Nearest] | None = None
    open_index: Callable[[str, int], Retrieve] | None = None
    keep: Callable[[Contender], Contender] = field(default=_itself)
