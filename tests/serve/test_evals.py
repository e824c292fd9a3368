"""Evals: made, run by a served model, counted exactly, cancelled, gone on with after a crash, never a stranger's."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tunesmith.cli.server_verbs import pass_interval, server_parts
from tunesmith.contender import Reply
from tunesmith.database import transaction
from tunesmith.evaluate.stats import mean_interval
from tunesmith.serve import eval_runs
from tunesmith.serve.access import PERMISSIONS, Identity
from tunesmith.serve.app import SERVER, create_app
from tunesmith.serve.models import ServedModels
from tunesmith.serve.records import eval_runs as records
from tunesmith.serve.records.completions import keep_completion
from tunesmith.serve.records.files import store_result
from tunesmith.serve.records.outbox import OUTBOX
from tunesmith.serve.records.paging import Cursor
from tunesmith.serve.reply import Ask
from tunesmith.serve.run import running
from tunesmith.serve.webhooks import Webhooks

SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "label": {"type": "string"}},
    "required": ["text"],
}
CUSTOM = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
SAME = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.label}}",
        "operation": "eq"}  # fmt: skip
LIKE = {"type": "text_similarity", "name": "like", "input": "{{sample.output_text}}", "reference": "{{item.label}}",
        "evaluation_metric": "fuzzy_match", "pass_threshold": 0.5}  # fmt: skip
TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "Say {{item.text}}"}]}


TOOL = {"type": "function", "function": {"name": "get_time"}}


def content(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"type": "file_content", "content": list(rows)}


def jsonl(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"type": "jsonl", "source": content(*rows)}


def brought(text: str, label: str) -> dict[str, Any]:
    return {"item": {"text": "x", "label": label}, "sample": {"output_text": text}}


def asked(model: str, *rows: dict[str, Any], **sampling: Any) -> dict[str, Any]:
    rows = rows or tuple({"item": {"text": word, "label": "x"}} for word in ("one", "two", "three"))
    return {"type": "completions", "model": model, "source": content(*rows), "input_messages": TEMPLATE,
            "sampling_params": {"max_completion_tokens": 4, **sampling}}  # fmt: skip


def make_eval(client: openai.OpenAI, *criteria: Any, config: Any = CUSTOM, **more: Any) -> Any:
    return client.evals.create(data_source_config=config, testing_criteria=list(criteria) or [SAME], **more)


def ended(client: openai.OpenAI, run: Any) -> Any:
    deadline = time.monotonic() + 60
    while run.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline, run
        time.sleep(0.02)
        run = client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
    return run


# -- the life of an eval -------------------------------------------------------------------------------------------


def test_rows_with_their_answers_are_counted_exactly(server: openai.OpenAI) -> None:
    made = make_eval(server, SAME, LIKE, name="labels", metadata={"for": "test"})
    assert made.object == "eval" and made.name == "labels" and made.metadata == {"for": "test"}
    assert made.data_source_config.to_dict()["schema"]["properties"]["item"] == SCHEMA
    rows = [brought("card", "card"), brought("cart", "card"), brought("login", "card"), {"item": {"text": "x"}}]
    run = ended(server, server.evals.runs.create(made.id, data_source=jsonl(*rows), name="first"))
    assert run.status == "completed" and run.error is None and run.object == "eval.run"
    assert run.result_counts.to_dict() == {"total": 4, "errored": 1, "failed": 2, "passed": 1}
    criteria = [criterion.to_dict() for criterion in run.per_testing_criteria_results]
    assert criteria == [
        {"testing_criteria": "same", "passed": 1, "failed": 2, "errored": 1},
        {"testing_criteria": "like", "passed": 2, "failed": 1, "errored": 1},
    ]
    rate = run.model_extra["pass_rate"]
    expected = mean_interval([1.0, 0.0, 0.0])
    assert rate == pytest.approx({"mean": expected.mean, "low": expected.low, "high": expected.high})
    items = list(server.evals.runs.output_items.list(run.id, eval_id=made.id, limit=2))
    assert len(items) == 4
    by_row = {item.datasource_item_id: item for item in items}
    assert [by_row[place].status for place in range(4)] == ["pass", "fail", "fail", "error"]
    assert by_row[1].results[1].score == pytest.approx(0.75) and by_row[1].results[1].passed
    assert by_row[1].sample.output[0].content == "cart" and by_row[1].datasource_item["label"] == "card"
    assert "no sample.output_text" in by_row[3].results[0].model_extra["error"]
    passed = server.evals.runs.output_items.list(run.id, eval_id=made.id, status="pass").data
    assert [item.datasource_item_id for item in passed] == [0]
    one = server.evals.runs.output_items.retrieve(passed[0].id, eval_id=made.id, run_id=run.id)
    assert one.to_dict() == passed[0].to_dict()


def test_a_served_model_answers_as_in_chat(server: openai.OpenAI) -> None:
    made = make_eval(server)
    run = ended(server, server.evals.runs.create(made.id, data_source=asked("red")))
    assert run.status == "completed" and run.model == "red"
    assert run.result_counts.total == 3 and run.result_counts.errored == 0
    usage = run.per_model_usage[0]
    assert usage.model_name == "red" and usage.invocation_count == 3 and usage.completion_tokens == 12
    for item in server.evals.runs.output_items.list(run.id, eval_id=made.id):
        word = item.datasource_item["text"]
        messages: Any = [{"role": "user", "content": f"Say {word}"}]
        reply = server.chat.completions.create(model="red", messages=messages, max_tokens=4)
        assert item.sample.output[0].content == reply.choices[0].message.content
        assert item.sample.input[0].content == f"Say {word}" and item.sample.finish_reason == "length"
        assert reply.usage and item.sample.usage.prompt_tokens == reply.usage.prompt_tokens


def test_rows_from_a_file_and_messages_from_an_item(server: openai.OpenAI) -> None:
    made = make_eval(server, config={"type": "custom", "item_schema": {}})
    turns = [{"role": "user", "content": "Say one"}]
    lines = [
        {"item": {"turns": turns, "label": "x"}},
        {"item": {"turns": "no", "label": "x"}},
        {"item": {"label": "x"}},
    ]
    data = "\n\n".join(map(json.dumps, lines)).encode()
    with transaction() as connection:
        file = store_result(connection, owner="local", filename="rows.jsonl", purpose="evals", data=data)
    source = asked("red") | {"source": {"type": "file_id", "id": file}}
    source["input_messages"] = {"type": "item_reference", "item_reference": "item.turns"}
    run = ended(server, server.evals.runs.create(made.id, data_source=source))
    assert run.result_counts.to_dict() == {"total": 3, "errored": 2, "failed": 1, "passed": 0}
    items = server.evals.runs.output_items.list(run.id, eval_id=made.id, status="error").data  # type: ignore[arg-type]
    assert {item.sample.error.code for item in items} == {"invalid_input_messages"}
    with transaction() as connection:
        bad = store_result(connection, owner="local", filename="x.jsonl", purpose="evals", data=data + b"\n{}")
    for id, words in ((bad, "Line 6 of"), ("file-none", "no file")):
        with pytest.raises(openai.APIStatusError, match=words):
            server.evals.runs.create(made.id, data_source={"type": "jsonl", "source": {"type": "file_id", "id": id}})


def test_stored_completions_are_graded_and_asked_again(server: openai.OpenAI) -> None:
    for number, text in enumerate(("card", "refund", "card")):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        body = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 100 + number, "model": "blue"}
        keep_completion(
            "local", {**body, "choices": [choice]}, messages=[{"role": "user", "content": "Say one"}],
            labels={"use": "labels" if number else "other"},
        )  # fmt: skip
    check = {**SAME, "reference": "card"}
    made = make_eval(server, check, config={"type": "stored_completions", "metadata": {"use": "labels"}})
    source: dict[str, Any] = {"type": "completions", "source": {"type": "stored_completions", "model": "blue"}}
    run = ended(server, server.evals.runs.create(made.id, data_source=source))  # type: ignore[arg-type]
    assert run.result_counts.to_dict() == {"total": 2, "errored": 0, "failed": 1, "passed": 1}
    again = source | {"model": "red", "sampling_params": {"max_completion_tokens": 4}}
    run = ended(server, server.evals.runs.create(made.id, data_source=again))  # type: ignore[arg-type]
    assert run.per_model_usage[0].invocation_count == 2
    late = {"type": "completions", "source": {"type": "stored_completions", "created_after": 999}}
    with pytest.raises(openai.BadRequestError, match="no rows"):
        server.evals.runs.create(made.id, data_source=late)  # type: ignore[arg-type]


def test_judges_grade_a_run(server: openai.OpenAI) -> None:
    ask = [{"role": "user", "content": "{{sample.output_text}}"}]
    judge = {
        "type": "label_model",
        "name": "judge",
        "model": "blue",
        "input": ask,
        "labels": ["a"],
        "passing_labels": [],
    }
    code = {"type": "python", "name": "code", "source": "def grade(s, i): return 0.6", "pass_threshold": 0.6}
    made = make_eval(server, code, judge)
    run = ended(server, server.evals.runs.create(made.id, data_source=jsonl(brought("a", "b"))))
    assert run.result_counts.errored == 1  # a random model says no label
    tallies = [one.model_extra["errored"] for one in run.per_testing_criteria_results]
    assert tallies == [0, 1] and run.per_testing_criteria_results[0].passed == 1


def test_evals_are_listed_changed_and_deleted(server: openai.OpenAI) -> None:
    made = [make_eval(server, name=f"e{number}") for number in range(5)]
    ids = [one.id for one in made]
    mine = [one.id for one in server.evals.list(limit=2) if one.id in ids]
    assert mine == ids
    assert [one.id for one in server.evals.list(order="desc", limit=3).data[:3]] == ids[:1:-1]
    changed = server.evals.update(ids[1], name="new", metadata={"a": "b"})
    assert changed.name == "new" and changed.metadata == {"a": "b"}
    by_update = [one.id for one in server.evals.list(order_by="updated_at", limit=2) if one.id in ids]
    assert sorted(by_update) == sorted(ids)
    for one in server.evals.list(limit=2):  # a list goes on after what was deleted under it
        if one.id in ids:
            assert server.evals.delete(one.id).deleted
    for id in (ids[0], "eval_none", "x" * 900):
        with pytest.raises(openai.NotFoundError):
            server.evals.retrieve(id)


def test_runs_are_listed_and_deleted_with_their_items(server: openai.OpenAI) -> None:
    made = make_eval(server)
    runs = [server.evals.runs.create(made.id, data_source=jsonl(brought("a", "a"))) for _ in range(3)]
    for run in runs:
        ended(server, run)
    assert [run.id for run in server.evals.runs.list(made.id, limit=2)] == [run.id for run in runs]
    assert server.evals.runs.list(made.id, status="failed").data == []
    assert server.evals.runs.delete(runs[0].id, eval_id=made.id).run_id == runs[0].id
    assert records.list_items("local", runs[0].id, status=None, cursor=Cursor(9))[0] == []
    server.evals.delete(made.id)
    assert records.list_items("local", runs[1].id, status=None, cursor=Cursor(9))[0] == []
    with pytest.raises(openai.NotFoundError):
        server.evals.runs.retrieve(runs[1].id, eval_id=made.id)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"data_source": {"type": "responses", "source": {}}}, "data_source", "jsonl"),
        ({"data_source": asked("red") | {"model": None}}, "data_source.model", "Name the model"),
        ({"data_source": asked("red") | {"input_messages": None}}, "data_source.input_messages", "what the model"),
        ({"data_source": asked("red", tools=[{}])}, "data_source.sampling_params.tools", "with a 'name'"),
        ({"data_source": asked("red", tools=[TOOL])}, "data_source.sampling_params.tools", "leaves out tools"),
        (
            {
                "data_source": asked(
                    "red", response_format={"type": "json_schema", "json_schema": {"schema": {"type": 1}}}
                )
            },
            "data_source.sampling_params.response_format",
            "cannot be kept to",
        ),
        (
            {"data_source": asked("red", response_format={"type": "json_schema"})},
            "data_source.sampling_params.response_format",
            "a 'schema'",
        ),
        ({"data_source": asked("red", {"item": {"text": 1}})}, "data_source.source", "row 1: text: 1 is not"),
        ({"data_source": jsonl()}, "data_source.source.content", "at least 1"),
        ({"data_source": jsonl(brought("a", "b")), "metadata": {"k" * 65: "v"}}, "metadata", "at most 64"),
    ],
)
def test_runs_that_must_fail_are_refused(server: openai.OpenAI, change: Any, param: str, words: str) -> None:
    made = make_eval(server)
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        server.evals.runs.create(made.id, **change)
    assert caught.value.param and caught.value.param.startswith(param)


@pytest.mark.parametrize(
    ("config", "criterion", "words"),
    [
        (CUSTOM, {**LIKE, "pass_threshold": None}, "from which score"),
        (CUSTOM | {"item_schema": {"type": "nothing"}}, SAME, "no JSON schema"),
        (CUSTOM | {"item_schema": {"properties": {"a": {"pattern": "(a+)+$"}}}}, SAME, "pattern"),
        (CUSTOM, {**SAME, "input": "{{nothing}}"}, "no variable"),
        ({"type": "custom"}, SAME, "Field required"),
        (CUSTOM, {"type": "multi", "name": "m", "graders": {"a": SAME}, "calculate_output": "a"}, "label_model"),
    ],
)
def test_evals_that_must_fail_are_refused(server: openai.OpenAI, config: Any, criterion: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        make_eval(server, criterion, config=config)


def test_a_schema_fetches_nothing_and_follows_no_circle(server: openai.OpenAI) -> None:
    for schema in ({"$ref": "http://127.0.0.1:1/x.json"}, {"a": {"$id": "http://127.0.0.1:1/", "$ref": "#/x"}}):
        with pytest.raises(openai.BadRequestError, match="reference beyond itself"):
            make_eval(server, config={"type": "custom", "item_schema": schema})
    for reference in ("#/nowhere", "#"):
        made = make_eval(server, config={"type": "custom", "item_schema": {"$ref": reference}})
        with pytest.raises(openai.BadRequestError, match="cannot be followed"):
            server.evals.runs.create(made.id, data_source=jsonl(brought("a", "a")))


# -- other owners --------------------------------------------------------------------------------------------------


class TwoOwners:
    def identify(self, headers: Any) -> Identity:
        return Identity(headers.get("authorization", "")[-1:], frozenset(PERMISSIONS))


def test_a_strangers_eval_is_found_as_little_as_none(served: ServedModels) -> None:
    app = create_app(served, routes=SERVER, access=TwoOwners(), **server_parts(served).state)
    with running(app) as url, httpx.Client(base_url=url) as http:

        def ask(who: str, method: str, path: str, body: Any = None) -> httpx.Response:
            return http.request(method, path, headers={"authorization": f"Bearer {who}"}, json=body)

        config = {"type": "custom", "item_schema": {}}
        made = ask("a", "POST", "/evals", {"data_source_config": config, "testing_criteria": [SAME]}).json()["id"]
        run_body = {"data_source": jsonl(brought("a", "a"))}
        run = ask("a", "POST", f"/evals/{made}/runs", run_body).json()["id"]
        assert ask("b", "GET", "/evals").json()["data"] == []
        for method, path, body in (
            ("GET", "", None), ("POST", "", {}), ("DELETE", "", None), ("GET", "/runs", None),
            ("POST", "/runs", run_body),
            ("GET", f"/runs/{run}", None), ("POST", f"/runs/{run}/cancel", None), ("DELETE", f"/runs/{run}", None),
            ("GET", f"/runs/{run}/output_items", None),
        ):  # fmt: skip
            answers = []
            for id in (made, "eval_" + "0" * 24):
                answer = ask("b", method, f"/evals/{id}{path}", body)
                answers.append((answer.status_code, answer.text.replace(id, "ID")))
            assert answers[0] == answers[1] and answers[0][0] == 404, (method, path)
        assert ask("a", "GET", f"/evals/{made}").json()["id"] == made


# -- ends in the middle --------------------------------------------------------------------------------------------


class Counted(ServedModels):
    """Says the prompt's last word, and counts who was asked; holds every reply until `go`."""

    def __init__(self, models: ServedModels) -> None:
        super().__init__({model.name: model for model in models})
        self.asked: list[str] = []
        self.go = threading.Event()
        self.go.set()

    def stream(self, name: str, ask: Ask, *, owner: str = "local") -> Iterator[str | Reply]:
        self.asked.append(ask.messages[-1].content)
        while not self.go.wait(0.01):
            yield ""
        text = ask.messages[-1].content.split()[-1]
        yield Reply(text, 3, 1, 0.0, "stop")


@pytest.fixture
def counted(served: ServedModels) -> Counted:
    return Counted(served)


@pytest.fixture
def client(counted: Counted, server: openai.OpenAI) -> Iterator[openai.OpenAI]:
    """Without the thread that works on runs."""
    parts = server_parts(counted)
    with running(create_app(counted, routes=SERVER, **parts.state)) as url:
        yield server.with_options(base_url=url)  # a client of its own would read all certificates again


def rows(count: int) -> list[dict[str, Any]]:
    return [{"item": {"text": f"{number}", "label": f"{number}"}} for number in range(count)]


def test_a_cancelled_run_keeps_what_it_has_and_asks_no_more(client: openai.OpenAI, counted: Counted) -> None:
    made = make_eval(client)
    run = client.evals.runs.create(made.id, data_source=asked("red", *rows(40)))
    counted.go.clear()
    with server_parts(counted).at_work():
        while not counted.asked:
            time.sleep(0.01)
        cancelled = client.evals.runs.cancel(run.id, eval_id=made.id)
        assert cancelled.status == "canceled"
        counted.go.set()
    old_clients = client.post(f"/evals/{made.id}/runs/{run.id}", cast_to=httpx.Response)
    assert old_clients.json()["status"] == "canceled"
    again = client.evals.runs.retrieve(run.id, eval_id=made.id)
    counts = again.result_counts
    assert counts.passed + counts.failed + counts.errored == 0 and counts.total == 40
    assert len(counted.asked) <= eval_runs.SLICE


def test_a_run_goes_on_where_it_was(client: openai.OpenAI, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_runs, "SLICE", 3)
    made = make_eval(client)
    run = client.evals.runs.create(made.id, data_source=asked("red", *rows(20)))
    parts = server_parts(counted)
    first = parts.runner
    with parts.at_work():
        while len(counted.asked) < 7:
            time.sleep(0.005)
        counted.go.clear()
    assert not first._thread.is_alive()
    middle = client.evals.runs.retrieve(run.id, eval_id=made.id)
    assert middle.status == "in_progress"
    done = middle.result_counts.passed
    asked_before = len(counted.asked)
    counted.go.set()
    with server_parts(counted).at_work():
        run = ended(client, run)
    assert run.result_counts.to_dict() == {"total": 20, "errored": 0, "failed": 0, "passed": 20}
    assert len(counted.asked) == asked_before + 20 - done
    assert run.per_model_usage[0].invocation_count == 20


@pytest.mark.slow
def test_runs_take_turns(client: openai.OpenAI, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_runs, "SLICE", 2)
    made = make_eval(client)
    long = client.evals.runs.create(made.id, data_source=asked("red", *rows(24)))
    short = client.evals.runs.create(made.id, data_source=asked("blue", {"item": {"text": "last", "label": "last"}}))
    with server_parts(counted).at_work():
        ended(client, short)
        assert client.evals.runs.retrieve(long.id, eval_id=made.id).status == "in_progress" or len(counted.asked) <= 25
        ended(client, long)
    assert counted.asked.index("Say last") < 8


def test_a_run_fails_in_words(client: openai.OpenAI, counted: Counted, tunesmith_home: Path) -> None:
    made = make_eval(client)
    gone = client.evals.runs.create(made.id, data_source=asked("red"))
    counted._models.pop("red")
    with transaction() as connection:
        file = store_result(
            connection, owner="local", filename="x", purpose="evals", data=json.dumps(brought("a", "a")).encode()
        )
    lost = client.evals.runs.create(made.id, data_source={"type": "jsonl", "source": {"type": "file_id", "id": file}})
    with transaction() as connection:
        from tunesmith.serve.records.files import FILES

        connection.execute(FILES.delete())
    secret = f"whsec_{base64.b64encode(bytes(24)).decode()}"
    nobody = Webhooks(["https://localhost:9/hook"], secret=secret, inside=True)  # so that all of it waits
    parts = server_parts(counted, webhooks=nobody)
    with parts.at_work():
        one, other = ended(client, gone), ended(client, lost)
    assert one.status == other.status == "failed"
    assert one.error.code == "model_not_found" and "blue" in one.error.message
    assert other.error.code == "not_found"
    with transaction() as connection:
        waiting = connection.execute(select(OUTBOX.c.kind, OUTBOX.c.about).order_by(OUTBOX.c.number)).all()
    assert [tuple(row) for row in waiting] == [("eval.run.failed", gone.id), ("eval.run.failed", lost.id)]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(["pass", "fail", "error"]), max_size=12), st.data())
def test_counts_are_those_of_the_items_however_often_a_row_comes(statuses: list[str], data: st.DataObject) -> None:
    run = records.new_run("o", "eval_x", name=None, source={}, criteria=1)
    records.add_run(run)
    with transaction() as connection:
        which = records.EVAL_RUNS.c.id == run.id
        connection.execute(records.EVAL_RUNS.update().where(which).values(status="in_progress"))
    places = data.draw(st.lists(st.integers(0, max(0, len(statuses) - 1)), max_size=20)) if statuses else []
    for place in places:
        status = statuses[place]
        result = {"passed": status == "pass"} | ({"error": "x"} if status == "error" else {})
        item = records.EvalItem("o", "eval_x", run.id, place, status, {}, [result], {})
        records.keep_item(item, usage={"m": [1, 2, 3]})
    found = records.find_run(run.id, eval_id="eval_x", owner="o")
    assert found is not None
    kept = [statuses[place] for place in set(places)]
    expected = {name: kept.count(status) for status, name in records.OUTCOMES.items()}
    assert found.counts == expected and found.tallies == [expected]
    assert found.usage == ({"m": [len(kept), 2 * len(kept), 3 * len(kept)]} if kept else {})


def test_the_interval_is_wilsons() -> None:
    share, low, high = pass_interval(8, 10)
    assert share == 0.8 and 0.49 < low < 0.5 and 0.94 < high < 0.95
