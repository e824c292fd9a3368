"""Models that people made, beside the bases: listed to their owner, found under any spelling of their name, deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.serve.house import full_server
from tunesmith.database import transaction
from tunesmith.serve.models import ServedModels
from tunesmith.serve.records.models import Made, publish

NAME = "ft:plain:org:support:1"


@pytest.fixture(scope="module")
def server(served: ServedModels) -> Iterator[str]:
    with full_server(served, encoder=None) as url:
        yield url


@pytest.fixture(scope="module")
def api(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server, api_key="none", max_retries=0, timeout=30)


def make(name: str, *, owner: str = "local", step: int | None = None, created: int = 5) -> None:
    with transaction() as connection:
        publish(connection, Made(name, owner, created, "plain", Path("/x"), "0" * 64, "ftjob-1", step))


def test_bases_come_first_then_the_owners_own_newest_first(api: openai.OpenAI) -> None:
    make(f"{NAME}:ckpt-step-3", step=3, created=4)
    make(NAME)
    make("ft:plain:org:secret:2", owner="someone else")
    assert [model.id for model in api.models.list()] == ["red", "blue", "plain", NAME, f"{NAME}:ckpt-step-3"]
    found = api.models.retrieve(f"{NAME}:ckpt-step-3")
    assert found.created == 4 and found.model_extra
    assert (found.model_extra["job"], found.model_extra["step"], found.model_extra["base"]) == ("ftjob-1", 3, "plain")


def test_a_name_with_a_slash_is_found_raw_and_encoded(api: openai.OpenAI, server: str) -> None:
    make("org/tuned:1")
    for spelling in ("org/tuned:1", "org%2Ftuned:1", "org%2Ftuned%3A1"):
        assert httpx.get(f"{server}/models/{spelling}").json()["id"] == "org/tuned:1"
    assert api.models.retrieve("org/tuned:1").id == "org/tuned:1"
    assert api.models.delete("org/tuned:1").deleted


def test_only_ones_own_made_models_can_be_deleted(api: openai.OpenAI) -> None:
    make(NAME)
    make("ft:plain:org:secret:2", owner="someone else")
    deleted = api.models.delete(NAME)
    assert (deleted.id, deleted.object, deleted.deleted) == (NAME, "model", True)
    with pytest.raises(openai.PermissionDeniedError, match="only your own") as caught:
        api.models.delete("red")
    assert caught.value.code == "model_not_deletable"
    texts = []
    for name in (NAME, "ft:plain:org:secret:2", "never was"):
        for call in (api.models.retrieve, api.models.delete):
            with pytest.raises(openai.NotFoundError) as gone:
                call(name)
            assert gone.value.code == "model_not_found"
            texts.append(str(gone.value.message).replace(name, "NAME"))
    assert len(set(texts)) == 1  # a stranger's model is as absent as one that never was
