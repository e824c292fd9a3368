"""Example -> token ids and the mask of trained tokens; messages -> prompt ids. The only place that knows templates.

Not here: torch, models. Preview, train, evaluate and serve all go through `Renderer`, so a prompt has the same ids
everywhere. What it proves of a template, or refuses it for, stands in `Renderer._pieces`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.chat import Example, Message
from tunesmith.errors import ModelError
from tunesmith.turns import ToolCall, name_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[Mapping[str, Any]]

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

        Each trained span is one answer and the end-of-turn token after it. A plain text is trained as a whole, without
        the template. Of a preference it is the preferred conversation.
        Raises RenderError when the template rewrites a trained answer or an earlier turn, or leaves out tools.
        """
        if example.kind == "text":
            return self._render_text(example.messages)
        ids: list[int] = []
        trained: list[bool] = []
        for piece in self._pieces(example.messages, example.tools):
            piece_ids = self._encode(piece)
            ids.extend(piece_ids)
            trained.extend([piece.trained] * len(piece_ids))
        while trained and not trained[-1]:  # what stands after the last trained token teaches nothing
            trained.pop()
            ids.pop()
        return Rendered(tuple(ids), tuple(trained))

    def prompt(self, messages: Sequence[Message], *, tools: Tools = ()) -> list[int]:
        """Token ids a model continues: the conversation and the opening of the assistant's turn.

        Equal to the ids before the answer in `render` of the same conversation, by construction.
        """
        *before, _answer, _rest = self._pieces((*messages, Message("assistant", "x", trained=True)), tools)
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

    def _render_text(self, messages: Sequence[Message]) -> Rendered:
        """The text between the tokenizer's own first token, if it puts one, and its end-of-text token."""
        stand_ins = self._stand_ins(messages, ())
        ids = self._encode(_Piece(_swap(messages[0].content, stand_ins), True, stand_ins, opens=True))
        bos = self.tokenizer.bos_token_id
        first = [bos] if bos is not None and self._backend.encode("", add_special_tokens=True).ids[:1] == [bos] else []
        last = self.tokenizer.convert_tokens_to_ids(self.tokenizer.eos_token or self.end_of_turn)
        return Rendered((*first, *ids, int(last)), (False,) * len(first) + (True,) * (len(ids) + 1))

    # -- cutting the rendered conversation at its answers --------------------------------------------------------

    def _pieces(self, messages: Sequence[Message], tools: Tools = ()) -> list[_Piece]:
        """Cut the rendered conversation at its assistant turns, proving each cut; the last piece is what follows.

        For every assistant turn, the conversation before it, opened for generation, must be a prefix of the whole text,
        and what follows must be the answer and an end-of-turn token. An untrained turn for which that fails (templates
        of reasoning models rewrite their history) is left uncut; a trained one is refused. Tools, calls and results
        must be in the text.
        """
        stand_ins = self._stand_ins(messages, tools)
        safe = [_replace(message, stand_ins) for message in messages] if stand_ins else messages
        tools = json.loads(_swap(_json(tools), stand_ins)) if tools else ()
        whole = self._apply(safe, generation=False, tools=tools)
        self._prove_tools(whole, safe, tools)
        pieces: list[_Piece] = []
        position = 0
        for index, message in enumerate(safe):
            if message.role != "assistant":
                continue
            start = self._apply(safe[:index], generation=True, tools=tools)
            if message.tool_calls:
                own = self._apply(safe[: index + 1], generation=False, tools=tools)
                end = self._calls_end(whole, start, own=own, message=message)
            else:
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

    def _calls_end(self, whole: str, start: str, *, own: str, message: Message) -> int | None:
        """Where a turn with calls and its end-of-turn token end in `whole`; `own` is the text up to this turn.

        The template writes a call in a form of its own, so the turn is what it adds to the text: from the opening to
        its only end-of-turn token, with the content, every name and every text of the arguments in between.
        """
        own = own.rstrip()
        if not (whole.startswith(start) and own.startswith(start) and whole.startswith(own)):
            return None
        turn = own[len(start) :]
        stops = [turn.index(text) + len(text) for text in self._ends if text in turn]
        wanted = [message.content, *(text for call in message.tool_calls for text in _texts_of(call))]
        if not stops or min(stops) != len(turn) or not all(_appears(text, turn) for text in wanted):
            return None
        return len(own)

    def _prove_tools(self, whole: str, messages: Sequence[Message], tools: Tools) -> None:
        """Tools, calls and results are in the text: templates leave out what they do not know, without a word."""
        missing = [call.name for message in messages for call in message.tool_calls if call.name not in whole]
        results = {chr(0xF8000 + index): turn for index, turn in enumerate(messages) if turn.role == "tool"}
        if results:  # their words may stand elsewhere, too: look for marks in their place
            marked = {id(turn): replace(turn, content=mark) for mark, turn in results.items()}
            text = self._apply([marked.get(id(turn), turn) for turn in messages], generation=False, tools=tools)
            missing += [turn.content[:40] for mark, turn in results.items() if mark not in text]
        if tools:  # a name may also stand in a call: look before the first answer, and whether tools change that
            first = next((index for index, turn in enumerate(messages) if turn.role == "assistant"), len(messages))
            head = self._apply(messages[:first], generation=True, tools=tools)
            same = head == self._apply(messages[:first], generation=True)
            missing += [name_of(tool) for tool in tools if same or name_of(tool) not in head]
        if missing:
            what = f"The base's template leaves out tools: {missing[0]!r} is not in the text it writes."
            raise RenderError(what, "Use a base whose template knows tools, or rows without them.")

    def _refusal(self, whole: str, start: str, message: Message) -> RenderError:
        if not whole.startswith(start):
            what = "The template is not prefix-preserving: the text before an answer changes once the answer is there."
        else:
            said = f"the answer {message.content[:40]!r} as it is"
            if message.tool_calls:
                said = f"the call of {message.tool_calls[0].name!r} whole, in one turn"
            what = (
                f"The template does not write {said} with an end-of-turn token after it, so the tokens to train "
                "cannot be told."
            )
        return RenderError(what, "Use a base with another chat template; nothing was trained.")

    def _apply(self, messages: Sequence[Message], *, generation: bool, tools: Tools = ()) -> str:
        turns = [_for_template(message) for message in messages]
        if "developer" not in self.template:
            turns = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=generation,
                **self._template_options,
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

    def _stand_ins(self, messages: Sequence[Message], tools: Tools) -> dict[str, str]:
        """Private-use characters for the control-token texts that occur in contents; empty for nearly every row."""
        contents = "".join(message.content for message in messages)
        if calls := [call for message in messages for call in message.tool_calls]:
            contents += "".join(call.name + _same_json(call.arguments) for call in calls)
        contents += _json(tools) if tools else ""
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


def _swap(text: str, stand_ins: Mapping[str, str]) -> str:
    for original, char in stand_ins.items():
        text = text.replace(original, char)
    return text


def _replace(message: Message, stand_ins: Mapping[str, str]) -> Message:
    calls = tuple(
        ToolCall(_swap(call.name, stand_ins), _swap(_same_json(call.arguments), stand_ins), call.id)
        for call in message.tool_calls
    )
    return replace(message, content=_swap(message.content, stand_ins), tool_calls=calls)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _same_json(text: str) -> str:
    """The same value with no character escaped that need not be: an escape could hide a control token."""
    return _json(json.loads(text))


def _for_template(message: Message) -> dict[str, Any]:
    """A turn as templates expect it: the arguments of a call as an object."""
    turn = message.as_dict()
    for call in turn.get("tool_calls", ()):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return turn


def _texts_of(call: ToolCall) -> Iterator[str]:
    """A call's name and every key and text in its arguments."""
    yield call.name
    values = [json.loads(call.arguments)]
    for value in values:  # grows while it is gone through
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value
            values.extend(value.values())
        elif isinstance(value, list):
            values.extend(value)


def _appears(text: str, whole: str) -> bool:
    """Whether a text stands in another, trimmed or as JSON."""
    return text.strip() in whole or _json(text)[1:-1].strip() in whole


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position
