"""Numbers of a running server in Prometheus' text form: requests, their durations, tokens, and gauges read when asked.

Not here: the route (routes.metrics). Labels are routes, methods, statuses and models: never an owner, a path or a text.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
Gauge = Callable[[], Mapping[str, float]]  # label -> value; one without a label has the label ""


class Metrics:
    """Counts are kept in memory, from the start of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._gauges: dict[str, tuple[str, str, Gauge]] = {}
        self.in_flight = 0

    def request(self, method: str, route: str, *, status: int, seconds: float) -> None:
        with self._lock:
            self._requests[method, route, status] += 1
            self._seconds[route] += seconds  # type: ignore[assignment]
            buckets = self._buckets.setdefault(route, [0] * (len(BUCKETS_S) + 1))
            buckets[bisect_left(BUCKETS_S, seconds)] += 1

    def tokens(self, model: str, *, prompt: int, completion: int) -> None:
        """Of one answered request."""
        with self._lock:
            self._tokens[model, "prompt"] += prompt
            self._tokens[model, "completion"] += completion

    def watch(self, name: str, text: str, *, label: str = "", read: Gauge) -> None:
        """A gauge `tunesmith_NAME`, read whenever the numbers are asked for."""
        self._gauges[name] = text, label, read

    def text(self) -> str:
        with self._lock:
            lines = [*self._request_lines(), *self._token_lines()]
        for name, (text, label, read) in self._gauges.items():
            lines += _head(name, "gauge", text)
            lines += [_line(name, {label: key} if label else {}, value) for key, value in read().items()]
        return "\n".join(lines) + "\n"

    def _request_lines(self) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests answered.")
        for (method, route, status), count in sorted(self._requests.items()):
            yield _line("requests_total", {"method": method, "route": route, "status": str(status)}, count)
        yield from _head("requests_in_flight", "gauge", "Requests being answered.")
        yield _line("requests_in_flight", {}, self.in_flight)
        yield from _head("request_seconds", "histogram", "From a request's arrival to the end of its answer.")
        for route, buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], buckets, strict=True):
                total += count
                yield _line("request_seconds_bucket", {"route": route, "le": bound}, total)
            yield _line("request_seconds_sum", {"route": route}, round(self._seconds[route], 6))
            yield _line("request_seconds_count", {"route": route}, total)

    def _token_lines(self) -> Iterator[str]:
        yield from _head(
            "tokens_total", "counter", "Tokens of requests, also of those that were left before their end."
        )
        for (model, kind), count in sorted(self._tokens.items()):
            yield _line("tokens_total", {"model": model, "kind": kind}, count)


class Meter:
    """Counts every request under the pattern of its route; those of no route are one, so that paths cannot grow it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.in_flight += 1
        try:
            await self.app(scope, receive, send_and_look)
        finally:
            self.metrics.in_flight -= 1
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if route != "none" else "any"
            self.metrics.request(method, route, status=status, seconds=time.perf_counter() - start)


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP tunesmith_{name} {text}", f"# TYPE tunesmith_{name} {kind}"]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"tunesmith_{name}{{{pairs}}} {value}" if pairs else f"tunesmith_{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
