"""An alias stands wherever a model is named: served, chatted with, evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.errors import InputError
from tunesmith.facts import weights_sha256
from tunesmith.store import record_decision


def test_an_alias_is_served_and_evaluated_as_what_it_points_at(make_adapter: Callable[..., Path]) -> None:
    from tunesmith.cli.serve import parse_models
    from tunesmith.generate import build_contenders
    from tunesmith.serve.models import ServedModels

    adapter = make_adapter(1)
    sha256 = weights_sha256(adapter)
    record_decision("red@prod", "shipped", folder=adapter, sha256=sha256, evidence=adapter)
    served = ServedModels.load(parse_models(["red@prod"]), precision="float32").get("red@prod")
    assert served.adapter_sha256 == sha256
    (contender,) = build_contenders(["adapter:red@prod"], precision="float32")
    assert contender.name == "adapter:red@prod"
    with pytest.raises(InputError, match="Did you mean red@prod"):
        ServedModels.load({"x": "red@prodd"})
