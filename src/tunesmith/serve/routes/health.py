"""/healthz: the process answers."""

from __future__ import annotations

from tunesmith.serve.route import Route


async def healthz() -> dict[str, str]:
    return {"status": "ok"}


ROUTES = (Route("GET", "/healthz", healthz, "public"),)
