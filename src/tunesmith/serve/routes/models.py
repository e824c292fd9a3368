"""/v1/models: what is served under which name.

Not here: loading (serve.models).
"""

from __future__ import annotations

from typing import Any

from fastapi import Request

from tunesmith.serve.models import ServedModels
from tunesmith.serve.route import Route
from tunesmith.serve.wire.chat import model_body


async def list_models(request: Request) -> dict[str, Any]:
    models: ServedModels = request.app.state.models
    return {"object": "list", "data": [model_body(model) for model in models]}


async def get_model(request: Request, name: str) -> dict[str, Any]:
    models: ServedModels = request.app.state.models
    return model_body(models.get(name))


ROUTES = (
    Route("GET", "/v1/models", list_models, "models.read"),
    Route("GET", "/v1/models/{name:path}", get_model, "models.read"),
)
