"""Scorers of JSON: the same value, valid, by a schema, field by field, and tool calls.

Not here: how values are read and compared (values). Listed in the package's __init__.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunesmith.chat import Example
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.scorers.score import Aggregate, Given, Score, Scorer, quote, read_argument_file
from tunesmith.evaluate.scorers.values import (
    NOT_JSON,
    Fields,
    fields,
    leaves,
    path_text,
    plain_value,
    read_json,
    value_of_answer,
)
from tunesmith.evaluate.stats import Floats, bootstrap_interval

TAGGED_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def same_json(argument: str, given: Given) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        wanted = leaves(value_of_answer(example))
        value, why = read_json(reply.text)
        if value is NOT_JSON:
            return Score(0.0, why)
        got = leaves(value)
        for path in [*wanted, *got]:
            if wanted.get(path) != got.get(path):
                what = f"expected {wanted.get(path, 'nothing')}, the reply has {got.get(path, 'nothing')}"
                return Score(0.0, f"at {path_text(path)}: {what}")
        return Score(1.0, "the reply is the same JSON as the expected answer")

    return Scorer(score)


def valid_json(argument: str, given: Given) -> Scorer:
    def score(example: Example, reply: Reply) -> Score:
        value, why = read_json(reply.text)
        if value is NOT_JSON:
            return Score(0.0, why)
        if not isinstance(value, dict):
            return Score(0.0, f"the reply is JSON, but a {type(value).__name__} and not an object")
        return Score(1.0, "the reply is a JSON object")

    return Scorer(score)


def json_schema(argument: str, given: Given) -> Scorer:
    """Whether the reply is JSON that fulfils the schema in a file (the draft it names, else 2020-12)."""
    from jsonschema import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    schema, why = read_json(read_argument_file(argument, scorer="json_schema"))
    if schema is NOT_JSON:
        raise InputError(f"{argument} holds no schema: {why.replace('the reply', 'the file', 1)}.", "Mend the file.")
    validator_class = validator_for(schema, default=Draft202012Validator)
    try:
        validator_class.check_schema(schema)
    except SchemaError as error:
        raise InputError(f"{argument} is no JSON Schema: {error.message}.", "Mend the schema.") from error
    validator = validator_class(schema)

    def score(example: Example, reply: Reply) -> Score:
        value, why = read_json(reply.text)
        if value is NOT_JSON:
            return Score(0.0, why)
        errors = sorted(validator.iter_errors(value), key=lambda error: error.json_path)
        if errors:
            more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
            return Score(0.0, f"at {errors[0].json_path}: {' '.join(errors[0].message.split())[:160]}{more}")
        return Score(1.0, "the reply fulfils the schema")

    return Scorer(score)


def json_fields(argument: str, given: Given) -> Scorer:
    """F1 = 2·|both| / (|expected| + |reply|) over the leaves path=value (Manning et al. 2008, section 8.3)."""

    def score(example: Example, reply: Reply) -> Score:
        wanted = fields(value_of_answer(example))
        value, why = read_json(reply.text)
        if value is NOT_JSON:
            return Score(0.0, why)
        got = fields(value)
        both = (wanted & got).total()
        right = f"{both} of {wanted.total()} expected fields are right"
        why = f"{right}, {got.total() - both} of the reply are wrong or extra{_first_wrong(wanted - got)}"
        return Score(2 * both / (wanted.total() + got.total()), why)

    return Scorer(score, aggregate=_sum_fields)


def _first_wrong(missing: Fields) -> str:
    return "".join(f"; {path_text(path)} should be {quote(value.partition(' ')[2] or value)}" for path, value in
                   list(missing)[:1])  # fmt: skip


def _sum_fields(examples: Sequence[Example], replies: Sequence[Reply]) -> Aggregate:
    """Precision, recall and F1 over the fields of all rows, and of every field. A reply that is no JSON has none."""
    counts_N3 = np.zeros((len(examples), 3))  # right, expected, replied
    by_field: dict[tuple[str, ...], Counter[str]] = {}
    for row, (example, reply) in enumerate(zip(examples, replies, strict=True)):
        value, _ = read_json(reply.text)
        wanted = fields(value_of_answer(example))
        got = Counter() if value is NOT_JSON else fields(value)
        sides = {"right": wanted & got, "expected": wanted, "replied": got}
        counts_N3[row] = [side.total() for side in sides.values()]
        for name, side in sides.items():
            for (path, _value), count in side.items():
                by_field.setdefault(path, Counter())[name] += count

    def share(over: tuple[float, float]) -> Callable[[Floats], Floats]:
        def figure(weights_RN: Floats) -> Floats:
            right_R, expected_R, replied_R = (weights_RN @ counts_N3).T
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(right_R / (over[0] * expected_R + over[1] * replied_R))

        return figure

    parts = {"precision": (0.0, 1.0), "recall": (1.0, 0.0), "f1": (0.5, 0.5)}
    said = []
    if not counts_N3[:, 2].any():  # nothing replied: no share of it is right or wrong
        del parts["precision"]
        said.append("No reply is JSON with fields, so there is no precision.")
    figures = {name: bootstrap_interval(share(over), len(examples)) for name, over in parts.items()}
    table = [_field_row(path, counts) for path, counts in by_field.items()]
    return Aggregate(figures, {"fields": sorted(table, key=lambda row: row["f1"])}, said)


def _field_row(path: tuple[str, ...], counts: Counter[str]) -> dict[str, Any]:
    right, expected, replied = counts["right"], counts["expected"], counts["replied"]
    return {
        "field": path_text(path),
        "expected": expected,
        "precision": right / replied if replied else None,
        "recall": right / expected if expected else None,
        "f1": 2 * right / (expected + replied),
    }


def tool_call(argument: str, given: Given) -> Scorer:
    """1 when the reply calls the same functions with the same arguments, in any order; half when only names agree."""

    def score(example: Example, reply: Reply) -> Score:
        last = example.messages[-1]
        wanted = read_calls(
            json.dumps([call.as_dict() for call in last.tool_calls]) if last.tool_calls else last.content
        )
        if not wanted:
            todo = "Use it on rows whose last turn has 'tool_calls', or is the JSON of a call."
            raise InputError("The expected answer calls no tool.", todo)
        got = read_calls(reply.text)
        if not got:
            return Score(0.0, f"the reply calls no tool: {quote(reply.text)}")
        if Counter(wanted) == Counter(got):
            return Score(1.0, "the reply makes the expected calls")
        names = [", ".join(sorted(name for name, _ in calls)) for calls in (wanted, got)]
        if names[0] != names[1]:
            return Score(0.0, f"expected a call of {names[0]}, the reply calls {names[1]}")
        return Score(0.5, f"the function is right, its arguments are not: {_argument_gap(wanted, got)}")

    return Scorer(score)


Call = tuple[str, frozenset[tuple[tuple[str, ...], str]]]  # name, arguments as leaves


def read_calls(text: str) -> list[Call]:
    """The calls in a text: OpenAI's shape, a plain {"name", "arguments" or "parameters"}, a list of either, or each in
    <tool_call> tags. Empty when there is none, or one of them cannot be read."""
    parts = TAGGED_CALL.findall(text) or [text]
    calls = []
    for part in parts:
        value, _ = read_json(part.strip())
        for item in value if isinstance(value, list) else [value]:
            body = item.get("function", item) if isinstance(item, dict) else None
            arguments = body.get("arguments", body.get("parameters", {})) if isinstance(body, dict) else None
            if isinstance(arguments, str):
                arguments, _ = read_json(arguments)
            if not isinstance(body, dict) or not isinstance(arguments, dict) or not isinstance(body.get("name"), str):
                return []
            plain = {path: plain_value(json.loads(leaf)) for path, leaf in leaves(arguments).items()}
            calls.append((body["name"], frozenset(plain.items())))
    return calls


def _argument_gap(wanted: Sequence[Call], got: Sequence[Call]) -> str:
    expected, replied = ({leaf for _, leaves in calls for leaf in leaves} for calls in (wanted, got))
    words = [
        f"{path_text(path)} {quote(value.partition(' ')[2] or value)}" for path, value in sorted(expected - replied)
    ]
    return f"it lacks {', '.join(words[:3])}" if words else "it has others besides"
