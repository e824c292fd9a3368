"""/metrics: numbers for Prometheus.

Not here: what is counted (serve.metrics).
"""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import PlainTextResponse

from tunesmith.serve.metrics import Metrics
from tunesmith.serve.route import Route

TEXT = "text/plain; version=0.0.4; charset=utf-8"


def get_metrics(request: Request) -> PlainTextResponse:
    metrics: Metrics = request.app.state.metrics
    return PlainTextResponse(metrics.text(), media_type=TEXT)


ANSWER = {"description": "Prometheus' text form", "content": {"text/plain": {"schema": {"type": "string"}}}}
ROUTES = (Route("GET", "/metrics", get_metrics, "metrics.read", docs={"responses": {"200": ANSWER}}),)
