"""/readyz: every base makes a token.

Not here: whether the process answers at all (serve.routes.health).
"""

from __future__ import annotations

from fastapi import Request

from tunesmith.serve.models import ServedModels
from tunesmith.serve.route import Route


def readyz(request: Request) -> dict[str, str]:
    """Generates one token with each base that made none in the last seconds; 503 where none comes."""
    models: ServedModels = request.app.state.models
    models.check_ready()
    return {"status": "ready"}


ROUTES = (Route("GET", "/readyz", readyz, "public"),)
