"""The HTTP application: lists of routes over the models that answer, and errors in OpenAI's form.

Not here: what a route does (serve.routes), who may (serve.access), the listening process (serve.run).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tunesmith import __version__
from tunesmith.errors import TunesmithError
from tunesmith.serve.access import API_KEY_VARIABLE, Access, OneKey, OnlyThisMachine
from tunesmith.serve.gate import Gate, error_response
from tunesmith.serve.limits import RateLimits
from tunesmith.serve.metrics import Meter, Metrics
from tunesmith.serve.models import ServedModels
from tunesmith.serve.route import Route, add_routes
from tunesmith.serve.routes import (
    chat,
    completions,
    description,
    embeddings,
    evals,
    files,
    graders,
    health,
    jobs,
    metrics,
    models,
    ready,
    stored,
    uploads,
)
from tunesmith.serve.wire.errors import RequestError, problems_error

ANSWERS = (*health.ROUTES, *ready.ROUTES, *chat.ROUTES, *completions.ROUTES)
ANSWERING = (*ANSWERS, *models.ROUTES)  # all that `tunesmith serve` answers
SERVER = (  # and `tunesmith server`
    *ANSWERS, *models.WITH_MADE, *files.ROUTES, *uploads.ROUTES, *jobs.ROUTES, *embeddings.ROUTES,
    *graders.ROUTES, *evals.ROUTES, *stored.ROUTES, *metrics.ROUTES, *description.ROUTES,
)  # fmt: skip


def create_app(
    served: ServedModels, *, routes: Sequence[Route] = ANSWERING, access: Access | None = None, **state: object
) -> FastAPI:
    """The application. With TUNESMITH_API_KEY set, every route that is not public asks for it, unless `access` says
    who may. `state` is what its routes find in `app.state` beside `models`."""
    app = FastAPI(title="tunesmith", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.models = served
    app.state.limits = RateLimits()
    app.state.metrics = Metrics()
    app.state.routes = routes
    for name, value in state.items():
        setattr(app.state, name, value)
    public = frozenset(route.path for route in routes if route.permission == "public")
    app.add_middleware(Meter, metrics=app.state.metrics)
    app.add_middleware(Gate, access=access or machine_access(), public=public)
    app.add_exception_handler(TunesmithError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(HTTPException, _refuse_route)
    add_routes(app, routes)
    return app


def machine_access() -> Access:
    """Who may ask where there is no list of keys: who has TUNESMITH_API_KEY, or, when it is not set, this machine."""
    key = os.environ.get(API_KEY_VARIABLE)
    return OneKey(key) if key else OnlyThisMachine()


async def _refuse(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _refuse_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(problems_error(error))


async def _refuse_route(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    response = error_response(RequestError(message, status=error.status_code))
    response.headers.update(error.headers or {})
    return response
