"""A JSON body of a request, read by hand: capped before it is kept, checked before anything stands on it.

Not here: what the fields mean (the other modules here). Called by routes as a dependency: `Annotated[X, json_body(X)]`.
What a database or a JSON answer could not hold is refused here: NUL, half characters, NaN, numbers beyond a float.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith.errors import MAX_SHOWN
from tunesmith.serve.wire.errors import RequestError

MAX_BODY_BYTES = 16 * 2**20
MAX_DEPTH = 64


class Wire(BaseModel):
    """A body whose every field is known: one that is not is refused by name."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


def json_body(model: type[M]) -> Any:
    """The dependency that gives an endpoint its body as `model`."""

    async def read(request: Request) -> M:
        return parse_body(await read_bytes(request), model)

    return Depends(read)


async def read_bytes(request: Request) -> bytes:
    """Raises RequestError: 415 for what is not JSON by its type, 413 above MAX_BODY_BYTES."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":  # what a page of another site could send unasked is not JSON
        raise RequestError("The body must be sent as application/json.", status=415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(f"The body is larger than {MAX_BODY_BYTES} bytes.", status=413)
    return bytes(body)


def parse_body(body: bytes, model: type[M]) -> M:
    """Raises RequestError (400) with every problem, and the first one's field as `param`."""
    values = parse_json(body)
    if not isinstance(values, dict):
        raise RequestError("The body is no JSON object.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _problems(error, values) from error


def parse_json(text: bytes, *, what: str = "The body") -> Any:
    """The value. Raises RequestError (400) for what is not JSON by the standard, or cannot be stored or sent back."""
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{what} is no JSON: {error}.") from error
    _check(value, what)
    return value


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _check(value: Any, what: str) -> None:
    stack = [(value, 0)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise RequestError(f"{what} is nested more than {MAX_DEPTH} deep.")
        if isinstance(value, dict):
            stack.extend((key, depth) for key in value)
            stack.extend((inner, depth + 1) for inner in value.values())
        elif isinstance(value, list):
            stack.extend((inner, depth + 1) for inner in value)
        elif isinstance(value, str):
            _check_text(value, what)


def _check_text(text: str, what: str) -> None:
    if "\0" in text:
        raise RequestError(f"{what} holds a NUL character.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"{what} holds half of a character (a lone surrogate).") from error


def _problems(error: ValidationError, values: dict[str, Any]) -> RequestError:
    problems = [
        (_param(item["loc"], values, missing=item["type"] == "missing"), str(item["msg"]).removeprefix("Value error, "))
        for item in error.errors()
    ]
    shown = "; ".join(f"'{param}': {text}" for param, text in problems[:MAX_SHOWN])
    more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
    return RequestError(f"{shown}{more}.", param=problems[0][0] or None)


def _param(place: Sequence[int | str], value: Any, *, missing: bool) -> str:
    """('grader', 'string_check', 'input') -> grader.input: pydantic names the kind of a union too, which is no key."""
    text = ""
    for depth, part in enumerate(place):
        lacks = missing and depth == len(place) - 1
        if isinstance(value, dict) and isinstance(part, str) and (part in value or lacks):
            text, value = f"{text}.{part}", value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            text, value = f"{text}[{part}]", value[part]
    return text.removeprefix(".")
