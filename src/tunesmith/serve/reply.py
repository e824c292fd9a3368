"""What one request wants, and one reply as it grows: text from tokens, stop strings, the end and its reason.

Not here: whose turn it is (serve.scheduler), which token comes next (sampling), HTTP. The ids are those of evaluation
(render.Renderer.prompt); a prompt is never trimmed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.errors import ServeError
from tunesmith.model import Base
from tunesmith.render import Renderer
from tunesmith.sampling import GREEDY, Constraint, Drawing, Sampling, Token

DEFAULT_MAX_NEW_TOKENS = 1024  # of a request that names no limit: a small model that repeats itself must come to an end


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request wants: an answer to `messages`, or what follows `ids`. `max_new_tokens` None: what fits the
    context, at most DEFAULT_MAX_NEW_TOKENS. `constrain` makes the grammar of one reply, for a base."""

    messages: tuple[Message, ...] = ()
    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    n: int = 1
    tools: tuple[Mapping[str, Any], ...] = ()
    ids: tuple[int, ...] = ()
    constrain: Callable[[Base], Constraint] | None = None
    pieces: bool = True  # text is wanted as it is made

    def prompt(self, base: Base) -> list[int]:
        """Raises RenderError when the template refuses the turns or leaves out the tools."""
        return list(self.ids) or base.renderer.prompt(self.messages, tools=self.tools)


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of the reply with this index; `tokens` are those it is made of, where log-probabilities are wanted."""

    index: int
    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """A whole reply."""

    index: int
    reply: Reply
    tokens: tuple[Token, ...] = ()


Item = Piece | Choice | Exception


class Writer:
    """One reply. `push` takes its tokens and gives new text; text that may be the beginning of a stop string is held
    back. The last item is the Choice, whose text is that of all pieces."""

    def __init__(self, base: Base, ask: Ask, *, index: int, prompt_tokens: int, limit: int) -> None:
        self.renderer = base.renderer
        self.ask = ask
        self.index = index
        self.prompt_tokens = prompt_tokens
        self.limit = limit
        seed = ask.sampling.seed
        sampling = ask.sampling if seed is None else replace(ask.sampling, seed=(seed + index) % 2**63)
        self.drawing = Drawing(sampling, constraint=ask.constrain(base) if ask.constrain else None)
        self.text = GrowingText(base.renderer)
        self.sent = 0  # characters
        self.told: list[tuple[int, Token]] = []  # tokens, and how much text there was before each
        self.num_told = 0  # of those, in the pieces so far
        self.start_s = time.perf_counter()

    def push(self, token: Token) -> list[Piece | Choice]:
        """What the reply's next token brings; nothing more may be pushed after a Choice."""
        if token.id in self.renderer.stop_ids:
            return self._end("stop")
        if self.ask.sampling.top_logprobs is not None:
            self.told.append((len(self.text.whole), token))
        before = len(self.text.whole)
        if self.text.add(token.id) and (cut := self._first_stop(before)) is not None:
            return self._end("stop", cut)
        if len(self.text.ids) == self.limit:
            return self._end("length")
        if not self.ask.pieces:
            return []
        safe = len(self.text.whole) - held_back(self.text.whole, self.ask.stop)
        return self._pieces(safe)

    def _first_stop(self, before: int) -> int | None:
        """Where the first stop string begins, of those that end in the new text."""
        whole = self.text.whole
        found = [at for stop in self.ask.stop if (at := whole.find(stop, max(0, before - len(stop) + 1))) >= 0]
        return min(found, default=None)

    def _pieces(self, safe: int) -> list[Piece | Choice]:
        if safe <= self.sent:
            return []
        text, self.sent = self.text.whole[self.sent : safe], safe
        tokens = []
        while self.num_told < len(self.told) and self.told[self.num_told][0] < safe:
            tokens.append(self.told[self.num_told][1])
            self.num_told += 1
        return [Piece(self.index, text, tuple(tokens))]

    def _end(self, reason: str, cut: int | None = None) -> list[Piece | Choice]:
        self.text.finish()
        whole = self.text.whole = self.text.whole[:cut]
        latency_s = time.perf_counter() - self.start_s
        reply = Reply(whole, self.prompt_tokens, len(self.text.ids), latency_s, reason)
        told = tuple(token for at, token in self.told if cut is None or at < cut)
        pieces = self._pieces(len(whole)) if self.ask.pieces else []
        return [*pieces, Choice(self.index, reply, told)]


class GrowingText:
    """The text of token ids that come one by one, as if all were decoded together each time.

    Only the last few are: from a place where the text was whole, so that what comes before cannot change.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.ids: list[int] = []
        self.whole = ""
        self._anchor = self._read = 0  # the window that is decoded again; where its known part ends

    def add(self, token: int) -> bool:
        """Whether there is new text; half of a character is none yet."""
        self.ids.append(token)
        new = self._new()
        if not new or new.endswith("\ufffd"):
            return False
        self._take(new)
        return True

    def finish(self) -> None:
        """What is still half a character becomes text."""
        self._take(self._new())

    def _new(self) -> str:
        known = self.renderer.decode(self.ids[self._anchor : self._read])
        return self.renderer.decode(self.ids[self._anchor :])[len(known) :]

    def _take(self, new: str) -> None:
        self.whole += new
        self._anchor, self._read = self._read, len(self.ids)


def reply_limit(base: Base, num_tokens: int, *, asked: int | None) -> int:
    """Tokens that a reply to a prompt of so many may take. Raises ServeError when they do not fit."""
    context = base.facts.max_positions
    left = context - num_tokens
    if left < (asked or 1):
        wanted = "leaves no room for a reply" if asked is None else f"and a reply of up to {asked} do not fit"
        raise ServeError(
            f"A prompt of {num_tokens} tokens {wanted} in the context of {context} tokens of {base.name}.",
            "Prompts are never trimmed: shorten the messages, or lower max_tokens.",
            status=400,
            code="context_length_exceeded",
        )
    return asked or min(left, DEFAULT_MAX_NEW_TOKENS)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may turn out to be the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
