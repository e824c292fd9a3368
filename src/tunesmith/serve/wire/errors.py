"""Errors on OpenAI's wire: the one place where an error of the tree becomes an HTTP status and a body.

Not here: what is logged of it (serve.gate). OpenAI's clients retry 408, 409, 429 and 5xx by themselves, so a refusal
that stays a refusal is a 400, 403 or 404.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from tunesmith.errors import MAX_SHOWN, DatabaseError, InputError, ServeError, TunesmithError
from tunesmith.render import RenderError


class RequestError(ServeError):
    """A request that cannot be answered as it is; `param` names the field, as OpenAI's clients show it. `headers` go
    with the answer, such as Retry-After."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.param = param
        self.headers = dict(headers or {})


def not_found(what: str, name: str, *, param: str | None = None) -> RequestError:
    """404 with the same words whether it never was, is gone, or belongs to someone else."""
    return RequestError(f"There is no {what} {name!r}.", param=param, code="not_found", status=404)


def problems_error(error: ValidationError | RequestValidationError) -> RequestError:
    """Every problem of a body, and the first one's field as `param`."""
    problems = [(_param(item["loc"]), _text(item)) for item in error.errors()]
    shown = "; ".join(f"'{param}': {text}" for param, text in problems[:MAX_SHOWN])
    more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
    return RequestError(f"{shown}{more}.", param=problems[0][0])


def _text(item: Mapping[str, Any]) -> str:
    return str(item["msg"]).removeprefix("Value error, ")


def _param(place: Sequence[int | str]) -> str:
    """('messages', 0, 'role') -> messages[0].role; FastAPI's leading 'body' or 'query' is left out."""
    place = place[1:] if place[:1] in (("body",), ("query",), ("path",), ("header",)) else place
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


def error_reply(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI's error body. What is not of the tree becomes 500 and says nothing of its inside."""
    status, code = 500, None
    message = "The server failed to answer; its log has the reason under this x-request-id."
    if isinstance(error, DatabaseError):  # its text may quote a statement with its values
        return error_reply(ServeError("The server's database cannot be used just now.", status=503))
    if isinstance(error, TunesmithError):
        message = str(error)
    if isinstance(error, ServeError):
        status, code = error.status, error.code
    elif isinstance(error, InputError | RenderError):
        status = 400
    param = (
        error.param if isinstance(error, RequestError) else "messages" if code == "context_length_exceeded" else None
    )
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}
