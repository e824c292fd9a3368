"""Replies that must be JSON, JSON of a schema, or calls of tools: a grammar says at each step which tokens may come.

Not here: choosing among them (sampling), how a template writes calls (serve.tools). The grammars are llguidance's, an
optional package. Called by serve.wire.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.model import Base
from tunesmith.serve.tools import CallForm, call_form
from tunesmith.serve.wire.errors import RequestError
from tunesmith.turns import name_of

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
# An indented line at most: a small model can write white space without end.
JSON_OPTIONS: Any = {"whitespace_flexible": True, "whitespace_pattern": r"[ ]?|\n[ ]{0,16}"}
ANY_TEXT = r"TEXT: /(.|\n)*/"
MOST_CALLS = 16  # in one reply that must call: a small model can go on without end
_TOKENIZERS: dict[str, Any] = {}  # by base; making one takes about a second
_FORMS: dict[str, CallForm | None] = {}  # the same
_MAKING = threading.Lock()


class Grammar:
    """What one reply has to keep to, and how far it is; `param` is the request's field that asks for it."""

    def __init__(self, matcher: Any, *, param: str) -> None:
        self.matcher = matcher
        self.param = param

    def allowed(self) -> bytes:
        mask: bytes = self.matcher.compute_bitmask()
        if self.matcher.is_error():
            raise RequestError(f"The reply's grammar failed: {self.matcher.get_error()}.", param=self.param)
        return mask

    def accept(self, token: int) -> None:
        self.matcher.consume_token(token)


def json_grammar(schema: Mapping[str, Any]) -> Callable[[Base], Grammar]:
    """Makes the grammar of one reply. Raises RequestError (400) for a schema that cannot be kept to, or without
    llguidance."""
    matchers = _matchers("response_format")
    try:
        grammar = matchers.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS)
    except ValueError as error:
        raise _refused(str(error), "response_format") from error
    return lambda base: _grammar(_tokenizer(base), grammar, param="response_format")


@dataclass(frozen=True, slots=True)
class Calls:
    """A reply of 1 to `most` calls of `tools`. With `text` it may be words, and words before one call; with `schema` it
    may be JSON of that instead. Called with a base it makes the grammar of one reply.

    Raises RequestError (400) for parameters that cannot be kept to, for a base whose template writes calls in a form
    that is not known, and without llguidance. `param` is the request's field that asks for it.
    """

    tools: tuple[Mapping[str, Any], ...]
    param: str
    most: int = MOST_CALLS
    text: bool = False
    schema: Mapping[str, Any] | None = None

    def __call__(self, base: Base) -> Grammar:
        _matchers(self.param)
        form, tokenizer = _form(base), _tokenizer(base)
        if form is None:
            raise RequestError(
                f"{self.param!r} cannot be kept to: the template of {base.name} writes calls in no form that is known "
                "here. Leave it out.",
                param=self.param,
                code="unsupported_parameter",
            )
        write = _Writer(tokenizer, {token.content: number for number, token in _added(base).items()})
        return _grammar(tokenizer, self._lark(form, write, base.name), param=self.param)

    def _lark(self, form: CallForm, write: _Writer, base: str) -> str:
        """The grammar in llguidance's form of Lark."""
        more = ""
        if form.joint is not None and self.most > 1:
            more = f"({write.literal(form.joint)} call){{0,{self.most - 1}}}"
        rules = [*self._starts(form, write, base)]
        rules.append(f"calls: {write.literal(form.head)} call {more} {write.literal(form.tail)}")
        rules.append(f"call: {' | '.join(f'call_{number}' for number in range(len(self.tools)))}")
        for number, tool in enumerate(self.tools):
            name = json.dumps(name_of(tool), ensure_ascii=False)[1:-1]
            rules.append(f"call_{number}: {write.literal(name + form.middle)} {_inline(_parameters(tool))}")
        return "\n".join(["%llguidance {}", *rules])

    def _starts(self, form: CallForm, write: _Writer, base: str) -> list[str]:
        """What the reply may be. Where words may come first, calls are known by the token or the mark that opens them
        (such as <tool_call>); what opens with neither looks like any other JSON."""
        is_special = write.is_special(form.head)
        mark = re.match(r"[^\s{\[]+", form.head)
        if self.schema is not None:
            if not (is_special or mark):
                raise RequestError(
                    f"'response_format' cannot be kept to beside tools: the template of {base} writes calls as plain "
                    "JSON, and they could not be told apart. Leave one of them out, or say tool_choice 'none'.",
                    param="response_format",
                    code="unsupported_parameter",
                )
            return ["start: calls | answer", f"answer: {_inline(self.schema)}"]
        if not self.text:
            return ["start: calls"]
        if is_special:
            return [f"start: calls | TEXT {'calls | TEXT' if form.after_words else ''}", ANY_TEXT]
        if mark:
            rest = f"{write.literal(form.head[mark.end() :])} call {write.literal(form.tail)}"
            return [f"start: said {rest} | TEXT", f"said[lazy]: TEXT {json.dumps(mark[0])}", ANY_TEXT]
        return ["start: calls | TEXT", r"TEXT: /([^\s{\[](.|\n)*)?/"]


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes a template's own text into a grammar: special tokens by their ids, the rest as strings."""

    tokenizer: Any
    added: Mapping[str, int]  # text -> id

    def literal(self, text: str) -> str:
        parts = self._split(text)
        return " ".join(f"<[{part}]>" if isinstance(part, int) else json.dumps(part) for part in parts)

    def is_special(self, text: str) -> bool:
        """Whether the first thing in it is one."""
        return isinstance(next(iter(self._split(text.lstrip())), None), int)

    def _split(self, text: str) -> list[str | int]:
        special = {name: number for name, number in self.added.items() if self.tokenizer.is_special_token(number)}
        if not special:
            return [text] if text else []
        names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        return [special.get(part, part) for part in re.split(f"({names})", text) if part]


def _parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a call's arguments. Raises RequestError where it is no object's."""
    schema = tool["function"].get("parameters")
    if schema is None:
        return NO_ARGUMENTS
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise RequestError(f"The 'parameters' of {name_of(tool)} are no schema of an object.", param="tools")
    return {**schema, "type": "object"}


def _inline(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": JSON_OPTIONS})


def _grammar(tokenizer: Any, grammar: str, *, param: str) -> Grammar:
    matcher = _matchers(param)(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise _refused(matcher.get_error(), param)
    return Grammar(matcher, param=param)


def _matchers(param: str) -> Any:
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise RequestError(
            f"{param!r} needs the package llguidance on the server: pip install llguidance",
            param=param,
            code="unsupported_parameter",
        ) from error
    return LLMatcher


def _refused(why: str, param: str) -> RequestError:
    return RequestError(f"The JSON schema cannot be kept to: {why}.", param=param)


def _form(base: Base) -> CallForm | None:
    key = _key(base)
    if key not in _FORMS:
        _FORMS[key] = call_form(base.renderer)
    return _FORMS[key]


def _key(base: Base) -> str:
    return f"{base.sha256} {base.renderer.template_sha256}"


def _added(base: Base) -> Mapping[int, Any]:
    found: Mapping[int, Any] = base.renderer.tokenizer.added_tokens_decoder
    return found


def _tokenizer(base: Base) -> Any:
    from llguidance.hf import from_tokenizer

    key = _key(base)
    with _MAKING:
        if key not in _TOKENIZERS:
            size = base.model.get_output_embeddings().out_features
            stops = sorted(base.renderer.stop_ids)
            _TOKENIZERS[key] = from_tokenizer(base.renderer.tokenizer, n_vocab=size, eos_token=stops)
        return _TOKENIZERS[key]
