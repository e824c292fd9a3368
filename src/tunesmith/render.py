"""Example -> token ids and the mask of trained tokens; messages -> prompt ids. The only place that knows templates.

Not here: torch, models. Preview, train, evaluate and serve all go through `Renderer`, so a prompt has the same ids
everywhere. What it proves of a template, or refuses it for, stands in `Renderer._pieces`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.chat import Example, Message
from tunesmith.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = (Message("user", "Where is my card?"), Message("assistant", "On its way.", trained=True))


class RenderError(ModelError):
    """A conversation or a template that cannot be turned into token ids truthfully; the text says why."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as tokens: ids and, of the same length, which of them are trained (predicted with a loss)."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]

    @property
    def num_trained(self) -> int:
        return sum(self.trained)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of the rendered conversation. In `text`, `stand_ins` (text -> character) replace control-token text
    that a person wrote, so every control token left in it is the template's own."""

    text: str
    trained: bool
    stand_ins: Mapping[str, str]
    opens: bool = False  # nothing stands before it


class Renderer:
    """Binds a tokenizer and its chat template. Raises RenderError at once when the template cannot be trusted."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, stop_ids: Iterable[int] = ()) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise RenderError("This tokenizer has no chat template.", "Use an instruction-tuned base that has one.")
        self.tokenizer = tokenizer
        self.template = str(tokenizer.chat_template)
        self.template_sha256 = hashlib.sha256(self.template.encode()).hexdigest()
        self._backend: Any = tokenizer.backend_tokenizer
        self._special = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._template_options: dict[str, Any] = {}
        self._ends: tuple[str, ...] = tuple(self._special)  # until the probe has found the template's own
        self.end_of_turn = self._probe()
        self._ends = tuple({self.end_of_turn, tokenizer.eos_token or self.end_of_turn})
        self.stop_ids = frozenset({int(tokenizer.convert_tokens_to_ids(self.end_of_turn)), *stop_ids} | self._eos())

    def render(self, example: Example) -> Rendered:
        """Token ids of the conversation up to the end of its last trained turn, and their mask.

        Each trained span is one answer and the end-of-turn token after it.
        Raises RenderError when the template rewrites a trained answer or an earlier turn.
        """
        ids: list[int] = []
        trained: list[bool] = []
        for piece in self._pieces(example.messages):
            piece_ids = self._encode(piece)
            ids.extend(piece_ids)
            trained.extend([piece.trained] * len(piece_ids))
        while trained and not trained[-1]:  # what stands after the last trained token teaches nothing
            trained.pop()
            ids.pop()
        return Rendered(tuple(ids), tuple(trained))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids a model continues: the conversation and the opening of the assistant's turn.

        Equal to the ids before the answer in `render` of the same conversation, by construction.
        """
        *before, _answer, _rest = self._pieces((*messages, Message("assistant", "x", trained=True)))
        return [token for piece in before for token in self._encode(piece)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without control tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def count_tokens(self, text: str) -> int:
        """Tokens of a plain text, without anything a template puts around it."""
        return len(self._backend.encode(text, add_special_tokens=False).ids)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Each id's own text; a character split over several tokens shows on the last of them."""
        texts: list[str] = []
        pending: list[int] = []
        for token in ids:
            pending.append(token)
            text = str(self.tokenizer.decode(pending, clean_up_tokenization_spaces=False))
            whole = not text.endswith("\ufffd")
            texts.append(text if whole else "")
            pending = [] if whole else pending
        return texts

    # -- cutting the rendered conversation at its answers --------------------------------------------------------

    def _pieces(self, messages: Sequence[Message]) -> list[_Piece]:
        """Cut the rendered conversation at its assistant turns, proving each cut; the last piece is what follows.

        For every assistant turn, the conversation before it, opened for generation, must be a prefix of the whole text,
        and what follows must be the answer and an end-of-turn token. An untrained turn for which that fails (templates
        of reasoning models rewrite their history) is left uncut; a trained one is refused.
        """
        stand_ins = self._stand_ins(messages)
        safe = [_replace(message, stand_ins) for message in messages]
        whole = self._apply(safe, generation=False)
        pieces: list[_Piece] = []
        position = 0
        for index, message in enumerate(safe):
            if message.role != "assistant":
                continue
            start = self._apply(safe[:index], generation=True)
            end = self._answer_end(whole, start, message.content)
            if end is None or len(start) < position:
                if message.trained:
                    raise self._refusal(whole, start, message)
                continue
            pieces.append(_Piece(whole[position : len(start)], False, stand_ins, opens=position == 0))
            pieces.append(_Piece(whole[len(start) : end], message.trained, stand_ins))
            position = end
        return [*pieces, _Piece(whole[position:], False, stand_ins, opens=position == 0)]

    def _answer_end(self, whole: str, start: str, content: str) -> int | None:
        """Where the answer that follows `start` and its end-of-turn token end in `whole`; None when they do not follow.

        The template may trim the answer and may put white space around it.
        """
        if not whole.startswith(start):
            return None
        for answer in (content, content.lstrip(), content.rstrip(), content.strip()):
            position = _skip_blank(whole, len(start)) if not answer[:1].isspace() else len(start)
            if whole.startswith(answer, position):
                stop = _skip_blank(whole, position + len(answer))
                ends = (stop + len(text) for text in self._ends if whole.startswith(text, stop))
                return next(ends, None)
        return None

    def _refusal(self, whole: str, start: str, message: Message) -> RenderError:
        if not whole.startswith(start):
            what = "The template is not prefix-preserving: the text before an answer changes once the answer is there."
        else:
            what = (
                f"The template does not write the answer {message.content[:40]!r} as it is with an end-of-turn token "
                "after it, so the tokens to train cannot be told."
            )
        return RenderError(what, "Use a base with another chat template; nothing was trained.")

    def _apply(self, messages: Sequence[Message], *, generation: bool) -> str:
        turns = [message.as_dict() for message in messages]
        if "developer" not in self.template:
            turns = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation, **self._template_options
            )
        except Exception as error:  # a template is a program and may raise anything
            roles = ", ".join(turn["role"] for turn in turns)
            raise RenderError(f"The base's template refuses the turns {roles}: {error}.") from error
        return str(text)

    def _probe(self) -> str:
        """Find the template options under which an answer can be told from the rest, and the end-of-turn token."""
        refusals = []
        for options in ({}, {"enable_thinking": False}):
            self._template_options = options
            try:
                answer = next(piece for piece in self._pieces(_PROBE) if piece.trained)
                return max((text for text in self._special if answer.text.endswith(text)), key=len)
            except RenderError as error:
                refusals.append(error)
        raise refusals[0]

    def _eos(self) -> set[int]:
        eos = self.tokenizer.eos_token_id
        return set() if eos is None else {int(eos)}

    # -- control-token text in content stays text ----------------------------------------------------------------

    def _stand_ins(self, messages: Sequence[Message]) -> dict[str, str]:
        """Private-use characters for the control-token texts that occur in contents; empty for nearly every row."""
        contents = "".join(message.content for message in messages)
        found = [text for text in sorted(self._special, key=len, reverse=True) if text in contents]
        free = (chr(code) for code in range(0xF0000, 0xFFFFD) if chr(code) not in contents)
        return dict(zip(found, free, strict=False))

    def _encode(self, piece: _Piece) -> list[int]:
        """Ids of a piece. Only the template's own control tokens become control tokens; no BOS or EOS is added."""
        if not any(char in piece.text for char in piece.stand_ins.values()):
            backend = self._backend if piece.opens else self._inner_backend
            return list(backend.encode(piece.text, add_special_tokens=False).ids)
        ids: list[int] = []
        for text, is_control in self._split_controls(piece.text):
            if is_control:
                ids.append(int(self.tokenizer.convert_tokens_to_ids(text)))
            elif text:
                for original, char in piece.stand_ins.items():
                    text = text.replace(char, original)
                ids.extend(self._plain_backend.encode(text, add_special_tokens=False).ids)
        return ids

    def _split_controls(self, text: str) -> Iterator[tuple[str, bool]]:
        """Split at control tokens, which may swallow the white space beside them (their lstrip and rstrip flags)."""
        parts = re.split("(" + "|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) + ")", text)
        for index, part in enumerate(parts):
            if index % 2:
                yield part, True
                continue
            if index > 0 and self._special[parts[index - 1]].rstrip:
                part = part.lstrip()
            if index + 1 < len(parts) and self._special[parts[index + 1]].lstrip:
                part = part.rstrip()
            yield part, False

    @cached_property
    def _inner_backend(self) -> Any:
        """The same tokenizer for text that stands after other text: some mark the first word of a text as one."""
        text = self._backend.to_str()
        inner = text.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        return self._backend if inner == text else type(self._backend).from_str(inner)

    @cached_property
    def _plain_backend(self) -> Any:
        """The same tokenizer inside a text, reading control-token text as ordinary text."""
        plain = type(self._backend).from_str(self._inner_backend.to_str())
        plain.encode_special_tokens = True
        return plain


def _replace(message: Message, stand_ins: Mapping[str, str]) -> Message:
    content = message.content
    for text, char in stand_ins.items():
        content = content.replace(text, char)
    return Message(message.role, content, message.trained)


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position
