"""A route: its path, what answers it, and the permission it asks for. An application is made of a list of them.

Not here: the routes (serve.routes), the application (serve.app). A route cannot be written without a permission, and
an application with a path that no Route declared does not start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from tunesmith.serve.access import Identity, Permission
from tunesmith.serve.wire.errors import ErrorBody, RequestError

PROBLEMS = {status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 503)}


@dataclass(frozen=True, slots=True)
class Route:
    """`endpoint` is a plain `def` where it reads the database or the disk, so that it runs in a thread, and `async`
    only where it streams. For the OpenAPI description: `body` is what is read by hand, `answer` what is given, and
    `docs` anything else of it."""

    method: str
    path: str
    endpoint: Callable[..., Any]
    permission: Permission
    status: int = 200
    docs: dict[str, Any] = field(default_factory=dict)
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None


async def who(request: Request) -> Identity:
    """Who asks. Raises the refusal where nobody was identified."""
    return asker(request)


def asker(request: Request) -> Identity:
    identity: Identity | None = request.state.identity
    if identity is None:
        raise request.state.refusal
    return identity


Who = Annotated[Identity, Depends(who)]


def add_routes(app: FastAPI, routes: Sequence[Route]) -> None:
    """Raises ValueError for a path of the application that no Route declares."""
    for route in routes:
        app.add_api_route(
            route.path,
            route.endpoint,
            methods=[route.method],
            status_code=route.status,
            dependencies=[Depends(_allowed(route.permission))],
            responses=_responses(route),
            openapi_extra=route.docs,
            response_model=None,
        )
    declared = {(route.method, route.path) for route in routes}
    for found in app.routes:
        if isinstance(found, APIRoute) and not {(method, found.path) for method in found.methods or ()} <= declared:
            raise ValueError(f"{found.path} declares no permission")


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {status: dict(problem) for status, problem in PROBLEMS.items()}
    if route.answer:
        responses[route.status] = {"model": route.answer}
    return responses


def _allowed(permission: Permission) -> Callable[[Request], Awaitable[None]]:
    """Holds who asks against the route's permission, then against the limits of the key. `async`: it never waits, and
    a thread for it would cost more than it does."""

    async def check(request: Request) -> None:
        if permission == "public":
            return
        identity = asker(request)
        if permission not in identity.permissions:
            raise RequestError(f"The API key does not have the permission {permission}.", status=403)
        request.state.headers.update(request.app.state.limits.admit(identity))
        if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:  # PostgreSQL keeps none in a text
            raise RequestError("No name, id or filter here holds a NUL character.")

    return check
