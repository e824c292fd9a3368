"""An alias stands wherever a model is named: served, chatted with, evaluated, asked over HTTP by anyone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from tests.serve.house import full_server
from tunesmith.errors import InputError
from tunesmith.facts import weights_sha256
from tunesmith.serve.models import ServedModels
from tunesmith.serve.records.models import Made, find_alias, find_model
from tunesmith.store import record_decision


def test_an_alias_is_served_and_evaluated_as_what_it_points_at(make_adapter: Callable[..., Path]) -> None:
    from tunesmith.cli.serve import parse_models
    from tunesmith.generate import build_contenders

    adapter = make_adapter(1)
    sha256 = weights_sha256(adapter)
    record_decision("red@prod", "shipped", folder=adapter, sha256=sha256, evidence=adapter)
    served = ServedModels.load(parse_models(["red@prod"]), precision="float32").get("red@prod")
    assert served.adapter_sha256 == sha256
    (contender,) = build_contenders(["adapter:red@prod"], precision="float32")
    assert contender.name == "adapter:red@prod"
    with pytest.raises(InputError, match="Did you mean red@prod"):
        ServedModels.load({"x": "red@prodd"})


def test_the_server_answers_with_what_an_alias_points_at_now(
    served: ServedModels, make_adapter: Callable[..., Path], targets: dict[str, str]
) -> None:
    def find(name: str, owner: str) -> Made | None:
        return find_alias(name) or find_model(name, owner=owner)

    models = ServedModels({model.name: model for model in served}, find=find, precision="float32")
    with full_server(models) as url:
        client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)

        def ask(model: str) -> str | None:
            messages = [{"role": "user", "content": "My card is lost."}]
            made = client.chat.completions.create(model=model, messages=messages, max_tokens=12)  # type: ignore[arg-type]
            return made.choices[0].message.content

        with pytest.raises(openai.NotFoundError):
            ask("support@prod")
        for version, (name, folder) in enumerate(targets.items(), start=1):
            if name == "plain":
                break
            sha256 = weights_sha256(Path(folder))
            record_decision("support@prod", "shipped", folder=Path(folder), sha256=sha256, evidence=Path(folder))
            assert ask("support@prod") == ask(name), version
            found = client.models.retrieve("support@prod")
            assert found.owned_by == "tunesmith" and found.to_dict()["sha256"] == sha256
        assert [model.id for model in client.models.list()].count("support@prod") == 1
        with pytest.raises(openai.PermissionDeniedError, match="served to everyone"):
            client.models.delete("support@prod")
