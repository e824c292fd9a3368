"""The served OpenAPI description: every route, valid, and (slow) held against what the server really answers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tunesmith.cli.server_verbs import server_parts
from tunesmith.serve.app import SERVER, create_app
from tunesmith.serve.models import ServedModels
from tunesmith.serve.run import running

EXAMPLES = 25  # of each operation


@pytest.fixture
def description(server_url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(server_url.removesuffix("/v1") + "/openapi.json").json()
    return found


def test_every_route_is_described_with_its_answers(description: dict[str, Any]) -> None:
    for route in SERVER:
        operation = description["paths"][route.path.replace(":path", "")][route.method.lower()]
        assert str(route.status) in operation["responses"] and "422" not in operation["responses"]
        assert {"400", "401", "403", "404", "500"} <= operation["responses"].keys()
        if route.body:
            assert operation["requestBody"]["content"]["application/json"]["schema"]
        if route.answer:
            assert operation["responses"][str(route.status)]["content"]["application/json"]["schema"]
        assert ("security" in operation) == (route.permission != "public")


def test_every_reference_of_the_description_leads_somewhere(description: dict[str, Any]) -> None:
    known = {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}
    stack: list[Any] = [description]
    seen = 0
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                seen += 1
                assert value["$ref"] in known
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    assert seen > 50
    assert "HTTPValidationError" not in description["components"]["schemas"]


def test_the_description_is_for_those_who_may_read(served: ServedModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "k")
    with running(create_app(served, routes=SERVER, **server_parts(served).state)) as url:
        assert httpx.get(url.removesuffix("/v1") + "/openapi.json").status_code == 401


class Answers:
    """What the server answered, by status, and where that is not what the description says."""

    def __init__(self, checks: list[Any]) -> None:
        self.checks = checks
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []

    def asker(self, ids: dict[str, str]) -> Callable[[Any], None]:
        """Asks a case, every other one with the ids of objects that there are."""

        def ask(case: Any) -> None:
            if self.statuses.total() % 2:
                case.path_parameters.update({name: ids[name] for name in case.path_parameters if name in ids})
            response = case.call(timeout=60)
            self.statuses[response.status_code] += 1
            try:
                case.validate_response(response, checks=self.checks)
            except Exception as error:
                self.faults.append(f"{case.method} {case.path} {response.status_code}: {error}")

        return ask


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_server_answers_as_described(served: ServedModels, tunesmith_home: Path) -> None:
    """schemathesis over every route: no 5xx, no status, type or body that is not described."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    answers = Answers(
        [
            not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ]
    )
    parts = server_parts(served, python_graders=False)
    with parts.at_work(), running(create_app(served, routes=SERVER, **parts.state)) as url:
        schema = schemathesis.openapi.from_url(url.removesuffix("/v1") + "/openapi.json")
        for result in schema.get_all_operations():
            ids = _make_something(url)  # those of the operation before may be deleted
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                _run(result.ok(), mode, ask=answers.asker(ids))
    statuses, faults = answers.statuses, answers.faults
    print(f"{statuses.total()} calls: {dict(statuses)}")
    assert statuses[200] > 100 and statuses[400] > 100 and statuses[404] > 50
    assert not faults, f"{len(faults)} of {statuses.total()}\n" + "\n\n".join(faults[:5])


def _run(operation: Any, mode: Any, *, ask: Callable[[Any], None]) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable

    few = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    test = few(given(case=operation.as_strategy(generation_mode=mode))(ask))
    with contextlib.suppress(Unsatisfiable):  # an operation with nothing to get wrong
        test()


def _make_something(url: str) -> dict[str, str]:
    """One object of each kind, so that lists are not empty; their ids, by the names that paths give them."""
    client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
    chat = client.chat.completions.create(
        model="red", messages=[{"role": "user", "content": "hi"}], max_tokens=2, store=True, metadata={"a": "b"}
    )
    check: Any = {"type": "string_check", "name": "c", "input": "a", "reference": "a", "operation": "eq"}
    made = client.evals.create(data_source_config={"type": "custom", "item_schema": {}}, testing_criteria=[check])
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {}}]}}
    run = client.evals.runs.create(made.id, data_source=source)
    return {"completion_id": chat.id, "eval_id": made.id, "run_id": run.id, "name": "red"}
