"""/openapi.json: the description of every route the application has, with its bodies, answers and errors.

Not here: the routes. Called by the route of serve.routes.description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from tunesmith.serve.route import Route

REFERENCE = "#/components/schemas/{model}"


def describe(app: FastAPI, routes: Sequence[Route]) -> dict[str, Any]:
    """OpenAPI 3.1. A body that is read by hand is described by its Route's `body`; 422 is never answered."""
    found = [route for route in app.routes if isinstance(route, APIRoute)]
    document = get_openapi(title=app.title, version=app.version, routes=found)
    bodies = [route.body for route in routes if route.body]
    by_model, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=REFERENCE)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update(definitions.get("$defs", {}))
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for route in routes:
        operation = document["paths"][route.path.replace(":path", "")][route.method.lower()]
        operation["responses"].pop("422", None)
        if route.body:
            content = {"application/json": {"schema": by_model[route.body, "validation"]}}
            operation["requestBody"] = {"required": True, "content": content}
        if route.permission != "public":
            operation["security"] = [{}, {"key": []}]
            operation["description"] = f"{operation.get('description', '')}\n\nPermission: {route.permission}.".strip()
    return document
