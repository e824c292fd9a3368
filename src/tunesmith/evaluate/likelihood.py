"""How likely a local contender finds given answers: their log-probability, each prompt computed once for all of them.

Not here: decoding (generate), the forward pass (nll). Called by the scorer of loss, by canaries and by choices.
torch comes with the spine, when something is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.chat import Example, Message
from tunesmith.contender import Contender, as_asked, innermost
from tunesmith.errors import InputError

if TYPE_CHECKING:
    from tunesmith.model import Base

ANSWER_ROOM = 256  # tokens that examples and passages leave for an answer, as they do for a reply


@dataclass(frozen=True, slots=True)
class Likelihood:
    """-log p of an answer and the end of its turn, in nats, over so many tokens."""

    nats: float
    tokens: int

    @property
    def mean_nats(self) -> float:
        return self.nats / self.tokens


def check_likelihoods(contender: Contender) -> None:
    """Raise InputError for a contender that tells no probabilities, such as one at a URL."""
    from tunesmith.generate import AdapterContender, LocalContender

    if not isinstance(innermost(contender), LocalContender | AdapterContender):
        what = f"{contender.name} cannot say how likely an answer is: only a local model can."
        raise InputError(what, "Leave this scorer out, or measure base: and adapter: contenders with it.")


def answer_likelihoods(
    contender: Contender, prompts: Sequence[Sequence[Message]], *, answers: Sequence[Message]
) -> list[Likelihood]:
    """Of each answer after its prompt, as the contender asks it (its system prompt, examples and passages included).

    Raises InputError as `check_likelihoods`, or for an example that does not fit the model's context.
    """
    from tunesmith.nll import sequence_nats

    check_likelihoods(contender)
    asked = [as_asked(contender, messages, max_new_tokens=ANSWER_ROOM) for messages in prompts]
    with opened(contender) as (base, model):
        rendered = []
        for messages, answer in zip(asked, answers, strict=True):
            turns = (*(replace(message, trained=False) for message in messages), replace(answer, trained=True))
            rendered.append(base.renderer.render(Example(turns)))
        longest, limit = max((len(one.ids) for one in rendered), default=0), base.facts.max_positions
        if longest > limit:
            what = f"A prompt and its answer have {longest} tokens, {base.name} takes {limit}."
            raise InputError(what, "Nothing is trimmed: leave the row out, or shorten it.")
        nats = sequence_nats(model, rendered)
    return [Likelihood(sum_nats, one.num_trained) for sum_nats, one in zip(nats, rendered, strict=True)]


@contextmanager
def opened(contender: Contender) -> Iterator[tuple[Base, Any]]:
    """The base and the model that answers, with its adapter on for as long."""
    from tunesmith.adapter import detach, load_adapter
    from tunesmith.generate import AdapterContender

    inner = innermost(contender)
    if not isinstance(inner, AdapterContender):
        yield inner.base, inner.model
        return
    model = load_adapter(inner.base, inner.adapter)
    try:
        yield inner.base, model
    finally:
        detach(model)
