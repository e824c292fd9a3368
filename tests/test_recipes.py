"""The teachable loop and `tunesmith train` do the same arithmetic: the same loss at every step, the same adapter."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.adapter import attach_lora, save_adapter
from tunesmith.chat import parse_row
from tunesmith.model import load_base
from tunesmith.recipe import recipe_from
from tunesmith.runs import create_run
from tunesmith.train.loop import fit
from tunesmith.train.run import plan

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.fixture
def sft_loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sft_loop", RECIPES / "sft_loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "share", [pytest.param(True, id="shared prefixes"), pytest.param(False, id="packed", marks=pytest.mark.slow)]
)
def test_both_loops_give_the_same_losses_and_the_same_adapter(
    sft_loop: ModuleType, share: bool, tiny_base: Path, tiny_file: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    expected = sft_loop.main(str(tiny_file), str(tiny_base), out=str(tmp_path / "twin"), epochs=2, peak=0.003, seed=3)

    values = {"data": str(tiny_file), "base": str(tiny_base), "epochs": 2, "learning_rate": 0.003, "seed": 3}
    recipe = recipe_from(values | {"threads": 1, "patience": None, "validations_per_epoch": 1}, source="test")
    base = load_base(str(tiny_base), precision="float32")
    lines = tiny_file.read_text().splitlines()
    examples = [example for line in lines if (example := parse_row(sft_loop.json.loads(line))[0])]
    planned = plan(base, recipe, examples=examples, validation=examples[:2])
    run = create_run(tmp_path / "run", recipe=recipe.model_dump())
    settings = replace(planned.settings, share=share)
    torch.manual_seed(settings.seed)
    model = attach_lora(base, rank=settings.rank, alpha=settings.alpha, dropout=0.0, targets=settings.targets)
    fit(run, model, settings=settings, rows=planned.rows, validation=planned.validation, watch=lambda metric: None)
    found = [row["loss"] for row in run.metrics() if row["kind"] == "train"]
    assert len(found) == settings.num_steps == 8
    assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert found[-1] < found[0]

    save_adapter(model, tmp_path / "ours", base=base)
    ours, twin = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "twin"))
    assert ours.keys() == twin.keys()
    assert all(torch.allclose(ours[name], twin[name], atol=1e-4) for name in ours)


def test_the_recipe_is_short_plain_and_stands_alone() -> None:
    text = (RECIPES / "sft_loop.py").read_text()
    assert len(text.splitlines()) <= 150
    assert "import tunesmith" not in text
    assert "from tunesmith" not in text
