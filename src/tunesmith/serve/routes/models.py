"""/v1/models: what is served under which name, and the models that people made here.

Not here: loading (serve.models), the list of made models (serve.records.models). `tunesmith serve` keeps no list: it
answers ROUTES; `tunesmith server` answers WITH_MADE.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request

from tunesmith.errors import ServeError
from tunesmith.serve.models import ServedModels
from tunesmith.serve.records import models as records
from tunesmith.serve.records.models import Made
from tunesmith.serve.route import Route, Who
from tunesmith.serve.wire.chat import model_body
from tunesmith.serve.wire.embeddings import EmbeddingModel, embedding_model_body
from tunesmith.serve.wire.errors import RequestError
from tunesmith.serve.wire.models import deleted_body, made_body


async def list_served(request: Request) -> dict[str, Any]:
    models: ServedModels = request.app.state.models
    return {"object": "list", "data": [model_body(model) for model in models]}


async def get_served(request: Request, name: str) -> dict[str, Any]:
    models: ServedModels = request.app.state.models
    return model_body(models.get(name))


def list_all(request: Request, who: Who) -> dict[str, Any]:
    """Bases, aliases and what else everyone is served, then the owner's own models and checkpoints, newest first."""
    served = _served(request)
    made = [made_body(model) for model in records.list_models(who.owner) if model.name not in served]
    return {"object": "list", "data": [*served.values(), *made]}


def get_any(request: Request, who: Who, *, name: str) -> dict[str, Any]:
    served = _served(request)
    return served[name] if name in served else made_body(_made(request, who, name))


def delete_made(request: Request, who: Who, *, name: str) -> dict[str, Any]:
    """Take a made model off the list. Raises RequestError (403) for what everyone is served."""
    if name in _served(request):
        message = f"{name!r} is served to everyone here; only your own fine-tuned models can be deleted."
        raise RequestError(message, code="model_not_deletable", status=403)
    _made(request, who, name)
    records.delete_model(name, owner=who.owner)
    return deleted_body(name)


def _served(request: Request) -> dict[str, dict[str, Any]]:
    models: ServedModels = request.app.state.models
    encoder: EmbeddingModel | None = request.app.state.encoder
    served = {model.name: model_body(model) for model in models}
    served |= {encoder.name: embedding_model_body(encoder)} if encoder else {}
    return served | {made.name: made_body(made) for made in records.list_aliases()}


def _made(request: Request, who: Who, name: str) -> Made:
    """The owner's. Raises ServeError (404) in the very words of a model that never was."""
    made = records.find_model(name, owner=who.owner)
    if made is None:
        served = ", ".join(_served(request)) or "none"
        raise ServeError(
            f"The model {name!r} is not served here.", f"Served: {served}.", status=404, code="model_not_found"
        )
    return made


ROUTES = (
    Route("GET", "/v1/models", list_served, "models.read"),
    Route("GET", "/v1/models/{name:path}", get_served, "models.read"),
)
WITH_MADE = (
    Route("GET", "/v1/models", list_all, "models.read"),
    Route("GET", "/v1/models/{name:path}", get_any, "models.read"),
    Route("DELETE", "/v1/models/{name:path}", delete_made, "models.write"),
)
