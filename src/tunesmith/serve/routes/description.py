"""/openapi.json: what this server answers, for tools that make clients and tests of it.

Not here: how it is made (serve.openapi).
"""

from __future__ import annotations

from typing import Any

from fastapi import Request

from tunesmith.serve.openapi import describe
from tunesmith.serve.route import Route


def get_description(request: Request) -> dict[str, Any]:
    """Made when it is first asked for."""
    state = request.app.state
    if not hasattr(state, "description"):
        state.description = describe(request.app, state.routes)
    description: dict[str, Any] = state.description
    return description


ROUTES = (Route("GET", "/openapi.json", get_description, "models.read"),)
