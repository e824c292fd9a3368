"""A route: its path, what answers it, and the permission it asks for. An application is made of a list of them.

Not here: the routes (serve.routes), the application (serve.app). A route cannot be written without a permission, and
an application with a path that no Route declared does not start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute

from tunesmith.serve.access import Identity, Permission
from tunesmith.serve.wire.errors import ErrorBody, RequestError

PROBLEMS = {status: {"model": ErrorBody} for status in (400, 401, 403, 404, 413, 415, 429, 500, 503)}


@dataclass(frozen=True, slots=True)
class Route:
    """`endpoint` is a plain `def` where it reads the database or the disk, so that it runs in a thread, and `async`
    only where it streams. `docs` goes into the OpenAPI description: the schema of a body that is read by hand."""

    method: str
    path: str
    endpoint: Callable[..., Any]
    permission: Permission
    status: int = 200
    docs: dict[str, Any] = field(default_factory=dict)


def who(request: Request) -> Identity:
    """Who asks; for a public route without a key nobody, which is an error of ours."""
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
            responses=PROBLEMS,  # type: ignore[arg-type]
            openapi_extra=route.docs,
            response_model=None,
        )
    declared = {(route.method, route.path) for route in routes}
    for found in app.routes:
        if isinstance(found, APIRoute) and not {(method, found.path) for method in found.methods or ()} <= declared:
            raise ValueError(f"{found.path} declares no permission")


def _allowed(permission: Permission) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        if permission == "public":
            return
        if permission not in who(request).permissions:
            raise RequestError(f"The API key does not have the permission {permission}.", status=403)

    return check
