"""/metrics: requests, durations, tokens and gauges in Prometheus' text form, without a word of anybody's."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import openai
import pytest

from tunesmith.cli.server_verbs import server_parts
from tunesmith.serve.app import SERVER, create_app
from tunesmith.serve.metrics import BUCKETS_S, Metrics
from tunesmith.serve.models import ServedModels
from tunesmith.serve.run import running

LINE = re.compile(r'tunesmith_(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\.)*",?)*)\})? ([0-9.e+-]+)')


def read(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        assert match, line
        found[f"{match[1]}{{{match[2] or ''}}}"] = float(match[3])
    return found


def test_requests_are_counted_by_route_and_status(served: ServedModels) -> None:
    parts = server_parts(served)
    app = create_app(served, routes=SERVER, **parts.state)
    parts.watch(app.state.metrics)
    with running(app) as url:
        client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
        reply = client.chat.completions.create(model="red", messages=[{"role": "user", "content": "hi"}], max_tokens=3)
        for path in ("models/secret-1", "models/secret-2", "secret-3"):
            assert httpx.get(f"{url}/{path}").status_code == 404
        numbers = read(httpx.get(url.removesuffix("/v1") + "/metrics").text)
    assert numbers['requests_total{method="POST",route="/v1/chat/completions",status="200"}'] == 1
    assert numbers['requests_total{method="GET",route="/v1/models/{name:path}",status="404"}'] == 2
    assert numbers['requests_total{method="any",route="none",status="404"}'] == 1
    assert numbers["requests_in_flight{}"] == 1  # this one
    assert reply.usage
    assert numbers['tokens_total{model="red",kind="completion"}'] == 3
    assert numbers['tokens_total{model="red",kind="prompt"}'] == reply.usage.prompt_tokens
    assert numbers['request_seconds_bucket{route="/v1/chat/completions",le="+Inf"}'] == 1
    (base,) = {Path(model.base.name).name for model in served}
    assert numbers[f'replies_running{{base="{base}"}}'] == numbers[f'requests_waiting{{base="{base}"}}'] == 0
    assert not any("secret" in name for name in numbers)


def test_a_histogram_counts_up_and_labels_are_escaped() -> None:
    metrics = Metrics()
    for seconds in (0.004, 0.005, 0.3, 9999):
        metrics.request("GET", "/x", status=200, seconds=seconds)
    metrics.tokens('a"b\\c\nd', prompt=1, completion=2)
    metrics.watch("waiting", "Requests that wait.", read=lambda: {"": 4})
    metrics.watch("open", "Open runs.", label="status", read=lambda: {"queued": 2})
    numbers = read(metrics.text())
    counts = [numbers[f'request_seconds_bucket{{route="/x",le="{bound}"}}'] for bound in (*BUCKETS_S, "+Inf")]
    assert counts == sorted(counts) and counts[0] == 2 and counts[-2] == 3 and counts[-1] == 4
    assert numbers['tokens_total{model="a\\"b\\\\c\\nd",kind="prompt"}'] == 1
    assert numbers["waiting{}"] == 4 and numbers['open{status="queued"}'] == 2


def test_metrics_need_their_permission(served: ServedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "k")
    with running(create_app(served, routes=SERVER, **server_parts(served).state)) as url:
        assert httpx.get(url.removesuffix("/v1") + "/metrics").status_code == 401
