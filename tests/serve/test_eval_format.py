"""Eval runs whose model must answer in JSON, or may call tools: what graders see, and what the items hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serve.test_evals import asked, ended, make_eval
from tests.serve.test_tool_choice import CITY, TAGGED, WEATHER, base_with
from tunesmith.serve.models import ServedModels

pytest.importorskip("llguidance")

FORM = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": True}}
IS_CITY = {"type": "string_check", "name": "city", "input": "{{sample.output_json.city}}", "reference": "Bonn",
           "operation": "eq"}  # fmt: skip


@pytest.fixture
def tagged(served: ServedModels, tiny_base: Path, tmp_path: Path) -> Iterator[str]:
    served.add("tagged", str(base_with(TAGGED, tiny_base, tmp_path / "tagged")))
    yield "tagged"
    served.remove("tagged")


def run_of(server: openai.OpenAI, model: str, **sampling: Any) -> Any:
    made = make_eval(server, IS_CITY)
    source = asked(model, max_completion_tokens=90, **sampling)
    run = ended(server, server.evals.runs.create(made.id, data_source=source))  # type: ignore[arg-type]
    return run, list(server.evals.runs.output_items.list(run.id, eval_id=made.id))


def test_replies_keep_to_a_schema_and_graders_read_it(server: openai.OpenAI) -> None:
    run, items = run_of(server, "red", response_format=FORM)
    assert run.data_source.sampling_params.response_format.to_dict() == FORM
    assert run.result_counts.errored == 0 and len(items) == 3
    for item in items:
        city = json.loads(item.sample.output[0].content)["city"]
        assert city in ("Bonn", "Köln") and item.status == ("pass" if city == "Bonn" else "fail")


def test_a_reply_beside_tools_is_a_call_or_keeps_to_the_schema(server: openai.OpenAI, tagged: str) -> None:
    _, items = run_of(server, tagged, response_format=FORM, tools=[WEATHER], temperature=1, seed=1)
    assert len(items) == 3
    for item in items:
        (turn,) = item.sample.output
        if item.sample.finish_reason == "tool_calls":
            for call in turn.model_extra["tool_calls"]:
                assert call["function"]["name"] == "get_weather" and json.loads(call["function"]["arguments"])["city"]
            assert item.status == "error", "there is no output_json"
        elif item.sample.finish_reason == "stop":
            assert json.loads(turn.content)["city"] in ("Bonn", "Köln")
