"""Who may do what, on every route of the live application: one row for each; a route without a row fails."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from tests.serve.house import FORM_TYPE, form, full_server
from tunesmith.database import transaction
from tunesmith.folders import home
from tunesmith.serve.access import LOCAL_OWNER, Permission
from tunesmith.serve.app import SERVER, create_app, machine_access
from tunesmith.serve.keyring import StoredKeys
from tunesmith.serve.limits import Bucket
from tunesmith.serve.models import ServedModels
from tunesmith.serve.records import eval_runs, evals, files, uploads
from tunesmith.serve.records.completions import keep_completion
from tunesmith.serve.records.jobs import JobOrder, create_job, pause_job
from tunesmith.serve.records.keys import create_key, revoke_key
from tunesmith.serve.records.models import Made, publish

JOBS = "/v1/fine_tuning/jobs"
PERMISSIONS = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
EVAL, RUN = "/v1/evals/{eval_id}", "/v1/evals/{eval_id}/runs/{run_id}"
STORED = "/v1/chat/completions/{completion_id}"
GRADER = {"type": "string_check", "name": "same", "input": "hi", "reference": "hi", "operation": "eq"}
EMPTY_SAMPLE: dict[str, Any] = {}
CHAT = {"model": "red", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


def a_file(owner: str) -> str:
    with transaction() as connection:
        return files.store_result(connection, owner=owner, filename="a.csv", purpose="fine-tune-results", data=b"a")


def an_upload(owner: str) -> str:
    return uploads.create_upload(owner=owner, label=("a.txt", "user_data"), mime_type="text/plain", size=0).id


def a_model(owner: str) -> str:
    name = f"ft:plain:{owner}:{secrets.token_hex(4)}"
    with transaction() as connection:
        publish(connection, Made(name, owner, 1, "plain", Path("/x"), "0" * 64))
    return name


def a_job(owner: str) -> str:
    order = JobOrder(
        model="plain", training_file=a_file(owner), validation_file=None, method="supervised", asked={}, seed=1,
        suffix=None, labels=None, integrations=None, request_sha256=secrets.token_hex(32),
    )  # fmt: skip
    return create_job(order, owner=owner).id


def a_paused_job(owner: str) -> str:
    id = a_job(owner)
    pause_job(id, owner=owner)
    return id


def an_eval(owner: str) -> str:
    return evals.add_eval(owner, name=None, labels={}, config={"type": "custom", "item_schema": {}}, criteria=[]).id


def a_run(owner: str) -> str:
    source = {"type": "jsonl", "source": {"type": "file_content", "content": []}}
    run = eval_runs.new_run(owner, an_eval(owner), name=None, source=source, criteria=0)
    eval_runs.add_run(replace(run, status="in_progress"))
    return f"{run.eval_id}/runs/{run.id}"


def an_ended_run(owner: str) -> str:
    path = a_run(owner)
    eval_runs.end_run(path.rpartition("/")[2], "completed")
    return path


def an_item(owner: str) -> str:
    path = a_run(owner)
    eval_id, _, run_id = path.split("/")
    item = eval_runs.EvalItem(owner, eval_id, run_id, 0, "pass", {}, [], EMPTY_SAMPLE)
    assert eval_runs.keep_item(item, usage={})
    return f"{path}/output_items/{item.id}"


def a_completion(owner: str) -> str:
    id = f"chatcmpl-{secrets.token_hex(12)}"
    body = {"id": id, "object": "chat.completion", "created": 1, "model": "red", "choices": [], "usage": None}
    keep_completion(owner, body, messages=[{"role": "user", "content": "hi"}])
    return id


@dataclass(frozen=True)
class Row:
    """A route: the permission it must ask for; what makes the object its path names, for an owner; a body that is
    right; and what the owner is answered then. Without `make` the path names nothing, or something absent."""

    method: str
    path: str
    permission: Permission
    make: Callable[[str], str] | None = None
    body: dict[str, Any] | None = None
    form: bytes | None = None
    status: int = 200

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def url(self, id: str) -> str:
        """`id` stands in every place; of an object inside others it holds theirs, too, and what stands between."""
        if "/" in id:
            return f"{self.path.partition('{')[0]}{id}{self.path.rpartition('}')[2]}"
        return re.sub(r"\{[^}]*\}", id, self.path)

    def ask(self, http: httpx.Client, id: str, headers: dict[str, str], path: str = "") -> httpx.Response:
        if self.form is not None:
            return http.request(self.method, path or self.url(id), content=self.form, headers=FORM_TYPE | headers)
        return http.request(self.method, path or self.url(id), json=self.body, headers=headers)


ROWS = (
    Row("GET", "/healthz", "public"),
    Row("GET", "/v1/models", "models.read"),
    Row("GET", "/v1/models/{name:path}", "models.read", a_model),
    Row("DELETE", "/v1/models/{name:path}", "models.write", a_model),
    Row("GET", "/readyz", "public"),
    Row("POST", "/v1/chat/completions", "inference", body=CHAT),
    Row("POST", "/v1/completions", "inference", body={"model": "red", "prompt": "hi", "max_tokens": 1}),
    Row("POST", "/v1/files", "files.write", form=form()),
    Row("GET", "/v1/files", "files.read"),
    Row("GET", "/v1/files/{file_id}", "files.read", a_file),
    Row("GET", "/v1/files/{file_id}/content", "files.read", a_file),
    Row("DELETE", "/v1/files/{file_id}", "files.write", a_file),
    Row("POST", "/v1/uploads", "files.write", body={
        "filename": "a.txt", "purpose": "user_data", "mime_type": "text/plain", "bytes": 1
    }),
    Row("POST", "/v1/uploads/{upload_id}/parts", "files.write", an_upload, form=form(b"", field=b"data", fields={})),
    Row("POST", "/v1/uploads/{upload_id}/complete", "files.write", an_upload, body={"part_ids": []}),
    Row("POST", "/v1/uploads/{upload_id}/cancel", "files.write", an_upload),
    Row("POST", JOBS, "jobs.write", body={"model": "plain", "training_file": "file-x"}, status=400),
    Row("GET", JOBS, "jobs.read"),
    Row("GET", f"{JOBS}/{{job_id}}", "jobs.read", a_job),
    Row("POST", f"{JOBS}/{{job_id}}/cancel", "jobs.write", a_job),
    Row("POST", f"{JOBS}/{{job_id}}/pause", "jobs.write", a_job),
    Row("POST", f"{JOBS}/{{job_id}}/resume", "jobs.write", a_paused_job),
    Row("GET", f"{JOBS}/{{job_id}}/events", "jobs.read", a_job),
    Row("GET", f"{JOBS}/{{job_id}}/checkpoints", "jobs.read", a_job),
    Row("GET", PERMISSIONS, "jobs.read", status=400),  # there are none, and it says so
    Row("POST", PERMISSIONS, "jobs.write", body={"project_ids": ["x"]}, status=400),
    Row("DELETE", f"{PERMISSIONS}/{{permission_id}}", "jobs.write", status=400),
    Row("POST", "/v1/embeddings", "inference", body={"model": "none", "input": "hi"}, status=404),
    Row("POST", "/v1/fine_tuning/alpha/graders/validate", "inference", body={"grader": GRADER}),
    Row("POST", "/v1/fine_tuning/alpha/graders/run", "inference", body={
        "grader": GRADER, "model_sample": "hi", "item": {}
    }),
    Row("POST", "/v1/evals", "evals.write", body={
        "data_source_config": {"type": "custom", "item_schema": {"type": "object"}}, "testing_criteria": [GRADER]
    }, status=201),
    Row("GET", "/v1/evals", "evals.read"),
    Row("GET", EVAL, "evals.read", an_eval),
    Row("POST", EVAL, "evals.write", an_eval, body={"name": "new"}),
    Row("DELETE", EVAL, "evals.write", an_eval),
    Row("POST", f"{EVAL}/runs", "evals.write", an_eval, body={"data_source": {
        "type": "jsonl", "source": {"type": "file_content", "content": [{"item": {}, "sample": {"output_text": "a"}}]}
    }}, status=201),
    Row("GET", f"{EVAL}/runs", "evals.read", an_eval),
    Row("GET", RUN, "evals.read", a_run),
    Row("POST", RUN, "evals.write", a_run),
    Row("POST", f"{RUN}/cancel", "evals.write", a_run),
    Row("DELETE", RUN, "evals.write", an_ended_run),
    Row("GET", f"{RUN}/output_items", "evals.read", a_run),
    Row("GET", f"{RUN}/output_items/{{item_id}}", "evals.read", an_item),
    Row("GET", "/v1/chat/completions", "completions.read"),
    Row("GET", STORED, "completions.read", a_completion),
    Row("POST", STORED, "completions.write", a_completion, body={"metadata": {"a": "b"}}),
    Row("DELETE", STORED, "completions.write", a_completion),
    Row("GET", f"{STORED}/messages", "completions.read", a_completion),
    Row("GET", "/metrics", "metrics.read"),
    Row("GET", "/openapi.json", "models.read"),
)  # fmt: skip
EVERY_ROW = pytest.mark.parametrize("row", ROWS, ids=str)


@pytest.fixture(scope="module")
def access() -> StoredKeys:
    access = StoredKeys(machine_access())
    access._wrong = Bucket(100_000, time.monotonic())  # more wrong keys than anyone may try
    return access


@pytest.fixture(scope="module")
def http(served: ServedModels, access: StoredKeys) -> Iterator[httpx.Client]:
    with full_server(served, access=access) as url, httpx.Client(base_url=url.removesuffix("/v1"), timeout=60) as http:
        yield http


@pytest.fixture
def keys(access: StoredKeys) -> dict[str, dict[str, str]]:
    """Who asks, and the headers they send."""
    made = {
        "ann": create_key(owner="ann", name="all")[0],
        "bob": create_key(owner="bob", name="all")[0],
        "reader": create_key(owner="ann", name="read", scopes=["read"])[0],
        "expired": create_key(owner="ann", name="expired", life_s=-1)[0],
    }
    made["revoked"], revoked = create_key(owner="ann", name="revoked")
    revoke_key(revoked.id)
    access.refresh()
    ann = made["ann"]
    strangers = {
        "no key": {}, "empty": {"authorization": "Bearer"}, "wrong": {"authorization": "Bearer tsk-wrong"},
        "one letter off": {"authorization": f"Bearer {ann[:-1]}{'0' if ann[-1] != '0' else '1'}"},
        "another scheme": {"authorization": f"Basic {ann}"}, "no scheme": {"authorization": ann},
        "x-api-key": {"x-api-key": ann}, "cookie": {"cookie": f"authorization=Bearer {ann}; key={ann}"},
    }  # fmt: skip
    return strangers | {name: {"authorization": f"Bearer {key}"} for name, key in made.items()}


def test_every_live_route_has_one_row_and_asks_for_its_permission() -> None:
    app = create_app(ServedModels({}), routes=SERVER)
    live = {
        (method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods or ()
    }
    assert len(app.routes) == len(live)  # nothing else is mounted
    assert live == {(row.method, row.path) for row in ROWS}, "give each route one row in ROWS"
    assert {(route.method, route.path, route.permission) for route in SERVER} == {
        (row.method, row.path, row.permission) for row in ROWS
    }
    assert len(ROWS) == len(SERVER)


def test_strangers_are_refused_everywhere_but_where_all_are_welcome(
    http: httpx.Client, keys: dict[str, dict[str, str]]
) -> None:
    key = keys["ann"]["authorization"].split()[1]
    for row in ROWS:
        id = row.make("ann") if row.make else "x"
        for stranger in set(keys) - {"ann", "bob", "reader"}:
            answer = row.ask(http, id, keys[stranger])
            if row.permission == "public":
                assert answer.status_code == 200, (row, stranger)
            else:
                assert answer.status_code == 401, (row, stranger)
                assert answer.json()["error"]["code"] == "invalid_api_key", (row, stranger)
                assert answer.headers["www-authenticate"] == "Bearer", (row, stranger)
        answer = row.ask(http, id, {}, path=f"{row.url(id)}?api_key={key}&authorization=Bearer%20{key}")
        assert answer.status_code == (200 if row.permission == "public" else 401), row


@EVERY_ROW
def test_a_key_that_only_reads_writes_nothing(http: httpx.Client, keys: dict[str, dict[str, str]], row: Row) -> None:
    id = row.make("ann") if row.make else "x x x"
    answer = row.ask(http, id, keys["reader"])
    if row.permission == "public" or row.permission.endswith(".read"):
        assert answer.status_code == row.status
    else:
        assert answer.status_code == 403 and row.permission in answer.json()["error"]["message"]
        owners = row.ask(http, id, keys["ann"])  # nothing happened to it
        assert owners.status_code == row.status, owners.text


@EVERY_ROW
def test_a_foreign_id_is_answered_like_one_that_never_was(
    http: httpx.Client, keys: dict[str, dict[str, str]], row: Row
) -> None:
    if row.make is None:
        pytest.skip("the path names no object")
    id = row.make("ann")
    foreign = row.ask(http, id, keys["bob"])
    absent_id = id[:-1] + ("0" if id[-1] != "0" else "1")
    absent = row.ask(http, absent_id, keys["bob"])
    assert (foreign.status_code, absent.status_code) == (404, 404)
    last, absent_last = (path.rpartition("/")[2] for path in (id, absent_id))
    assert foreign.text == absent.text.replace(absent_last, last)
    ignored = ("x-request-id", "date")
    assert [item for item in foreign.headers.items() if item[0] not in ignored] == [
        item for item in absent.headers.items() if item[0] not in ignored
    ]
    owners = row.ask(http, id, keys["ann"])
    assert owners.status_code == row.status, owners.text


def test_lists_show_only_what_is_ones_own(http: httpx.Client, keys: dict[str, dict[str, str]]) -> None:
    anns, bobs = {a_file("ann"), a_model("ann")}, {a_file("bob"), a_model("bob")}
    for path in ("/v1/files", "/v1/models"):
        seen = {item["id"] for item in http.get(path, headers=keys["ann"]).json()["data"]}
        assert seen & anns and not seen & bobs
    (bobs_file,) = (id for id in bobs if id.startswith("file-"))
    assert http.get(f"/v1/files?after={bobs_file}", headers=keys["ann"]).status_code == 404


def test_a_stranger_does_not_learn_which_routes_there_are(http: httpx.Client, keys: dict[str, dict[str, str]]) -> None:
    for method, path in (("GET", "/v1/nothing"), ("PATCH", "/v1/files"), ("GET", "/docs")):
        assert http.request(method, path).status_code == 401
        assert http.request(method, path, headers=keys["ann"]).status_code in (404, 405)


def test_a_strangers_body_is_not_read(http: httpx.Client, keys: dict[str, dict[str, str]]) -> None:
    """Nor is anyone's beyond the limit, also when its length was not announced."""
    endless = (b"x" * 65536 for _ in range(1 << 20))  # 64 GiB
    assert http.post("/v1/uploads", content=endless).status_code == 401
    for path in ("/v1/uploads", "/v1/chat/completions"):
        endless = (b" " * 65536 for _ in range(1 << 20))
        answer = http.post(path, content=endless, headers=keys["ann"] | {"content-type": "application/json"})
        assert answer.status_code == 413, answer.text


def test_keys_prompts_and_contents_are_in_no_log_error_or_database(
    served: ServedModels, access: StoredKeys, keys: dict[str, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Markers go in everywhere, things fail everywhere, and none comes out. What a request's own path says may stand in
    its answer; nothing of a body may."""

    def explode(path: Path, filename: str) -> None:
        raise RuntimeError(f"inside: {path.read_bytes()!r} {filename}")

    marker = "zebra7"
    secret = keys["ann"]["authorization"].split("-")[2]
    texts: list[str] = []
    with (
        caplog.at_level(logging.DEBUG),
        full_server(served, access=access) as url,
        httpx.Client(base_url=url, headers=keys["ann"]) as http,
    ):
        rows = [
            f'{{"{marker}": 1, "{marker}": 2}}', f'{{"a": "{marker}"', f"{marker}", f'"{marker}"', f"{{'{marker}'}}",
            f'{{"a": "{marker}\\ud800"}}', f'{{"a": "{marker}\x01"}}', f'{{"a": {marker}}}', f'{{"a": "\\q{marker}"}}',
        ]  # fmt: skip
        bodies = [form(row.encode()) for row in rows]
        bodies += [form(filename=f"{marker}.csv".encode()), form(filename=f"{marker}\0.jsonl".encode())]
        bodies += [form(fields={"purpose": marker}), form(fields={"purpose": "fine-tune", marker: "x" * 5000})]
        bodies += [form(field=marker.encode()), form()[:-5] + marker.encode()]
        answers = [http.post("/files", content=body, headers=FORM_TYPE) for body in bodies]
        assert {answer.status_code for answer in answers} == {400}
        texts += [answer.text for answer in answers]
        wrong = {"authorization": f"Bearer tsk-{marker}"}
        texts.append(http.get("/files", headers=wrong).text)
        chat = {"model": "red", "messages": [{"role": marker, "content": marker}]}
        texts.append(http.post("/chat/completions", json=chat).text)
        texts.append(http.post("/uploads", json={"filename": marker, "purpose": marker, "bytes": marker}).text)
    with (
        caplog.at_level(logging.DEBUG),
        full_server(served, access=access, check_upload=explode) as url,
        httpx.Client(base_url=url, headers=keys["ann"]) as http,
    ):
        answer = http.post("/files", content=form(f'{{"a": "{marker}"}}'.encode()), headers=FORM_TYPE)
        assert answer.status_code == 500
        texts.append(answer.text)
    assert "RuntimeError" in caplog.text
    texts += [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    texts += [path.read_bytes().decode("latin-1") for path in home().rglob("*") if path.is_file()]
    for at, text in enumerate(texts):
        assert marker not in text and secret not in text, (at, text)


def test_without_any_key_this_machine_owns_everything() -> None:
    assert a_file(LOCAL_OWNER)
    with full_server(access=StoredKeys(machine_access())) as url:
        assert len(httpx.get(f"{url}/files").json()["data"]) == 1
        assert httpx.get(f"{url}/files", headers={"host": "evil.example"}).status_code == 403
