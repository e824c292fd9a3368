"""Replies that must be JSON, or JSON of a schema: a grammar says at each step which tokens may come next.

Not here: choosing among them (sampling). The grammars are llguidance's, an optional package.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.model import Base
from tunesmith.serve.wire.errors import RequestError

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
# An indented line at most: a small model can write white space without end.
JSON_OPTIONS: Any = {"whitespace_flexible": True, "whitespace_pattern": r"[ ]?|\n[ ]{0,16}"}
_TOKENIZERS: dict[str, Any] = {}  # by base; making one takes about a second
_MAKING = threading.Lock()


class Grammar:
    """What one reply has to keep to, and how far it is."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def allowed(self) -> bytes:
        mask: bytes = self.matcher.compute_bitmask()
        if self.matcher.is_error():
            raise RequestError(f"The reply's grammar failed: {self.matcher.get_error()}.", param="response_format")
        return mask

    def accept(self, token: int) -> None:
        self.matcher.consume_token(token)


def json_grammar(schema: Mapping[str, Any]) -> Callable[[Base], Grammar]:
    """Makes the grammar of one reply. Raises RequestError (400) for a schema that cannot be kept to, or without
    llguidance."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise RequestError(
            "'response_format' needs the package llguidance on the server: pip install llguidance",
            param="response_format",
            code="unsupported_parameter",
        ) from error
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS)
    except ValueError as error:
        raise _refused(str(error)) from error

    def make(base: Base) -> Grammar:
        matcher = LLMatcher(_tokenizer(base), grammar, log_level=0)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return Grammar(matcher)

    return make


def _refused(why: str) -> RequestError:
    return RequestError(f"The JSON schema cannot be kept to: {why}.", param="response_format")


def _tokenizer(base: Base) -> Any:
    from llguidance.hf import from_tokenizer

    key = f"{base.sha256} {base.renderer.template_sha256}"
    with _MAKING:
        if key not in _TOKENIZERS:
            size = base.model.get_output_embeddings().out_features
            stops = sorted(base.renderer.stop_ids)
            _TOKENIZERS[key] = from_tokenizer(base.renderer.tokenizer, n_vocab=size, eos_token=stops)
        return _TOKENIZERS[key]
