"""A route names the permission it asks for; without one the application does not start."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.datastructures import Headers

from tunesmith.errors import DatabaseError
from tunesmith.serve.access import Identity
from tunesmith.serve.app import create_app
from tunesmith.serve.models import ServedModels
from tunesmith.serve.route import Route, Who, add_routes
from tunesmith.serve.wire.errors import RequestError


class Reader:
    """A key that may only look at files; anyone else is a stranger."""

    def identify(self, headers: Headers) -> Identity | RequestError:
        if headers.get("authorization") == "Bearer reader":
            return Identity("anna", frozenset({"files.read"}))
        return RequestError("Who are you?", status=401)


def mine(who: Who) -> dict[str, str]:
    return {"owner": who.owner}


def opened() -> dict[str, str]:
    return {}


def broken() -> None:
    raise DatabaseError("INSERT INTO secret VALUES ('my prompt')")


@pytest.fixture(scope="module")
def client() -> TestClient:
    routes = (
        Route("GET", "/mine", mine, "files.read"),
        Route("POST", "/mine", mine, "files.write", status=201),
        Route("GET", "/open", opened, "public"),
        Route("GET", "/broken", broken, "public"),
    )
    return TestClient(create_app(ServedModels({}), routes=routes, access=Reader()))


def test_the_application_refuses_a_path_without_a_permission() -> None:
    app = FastAPI()
    app.get("/forgotten")(mine)
    with pytest.raises(ValueError, match="/forgotten declares no permission"):
        add_routes(app, ())


def test_who_asks_may_do_what_the_key_says_and_no_more(client: TestClient) -> None:
    reader = {"authorization": "Bearer reader"}
    assert client.get("/mine", headers=reader).json() == {"owner": "anna"}
    refused = client.post("/mine", headers=reader)
    assert refused.status_code == 403
    assert "files.write" in refused.json()["error"]["message"]


def test_a_stranger_gets_only_what_is_public_and_learns_of_no_route(client: TestClient) -> None:
    assert client.get("/open").status_code == 200
    assert client.get("/mine").status_code == client.get("/nothing").status_code == 401
    assert client.get("/nothing", headers={"authorization": "Bearer reader"}).status_code == 404


def test_a_database_that_fails_is_503_without_its_statement(client: TestClient) -> None:
    answer = client.get("/broken")
    assert answer.status_code == 503
    assert "prompt" not in answer.text
    assert answer.headers["x-request-id"].startswith("req_")
