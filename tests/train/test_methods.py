"""Every method of update: what was trained is saved, proved, reloaded and merged; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.conftest import losses
from tests.train.test_run import stop_at
from tunesmith.adapter import ADAPTER_FILE, find_tuned, load_adapter, merge
from tunesmith.chat import Message
from tunesmith.errors import InputError, ModelError, RunError
from tunesmith.facts import read_facts, weights_sha256
from tunesmith.generate import build_contenders
from tunesmith.hardware import detect
from tunesmith.model import load_base
from tunesmith.recipe import Recipe, recipe_from
from tunesmith.runs import Run
from tunesmith.serve.models import ServedModels
from tunesmith.train.loop import Interrupted
from tunesmith.train.settings import Settings, settle
from tunesmith.worker import Job, prepare

METHODS = ("lora", "rslora", "dora", "qlora", "full")
IDS_BT = torch.tensor([[1, 50, 60, 70, 2, 80]])
MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Job]


@pytest.fixture
def recipe_of(small_recipe: MakeRecipe) -> MakeRecipe:
    def make(method: str, **changes: Any) -> Recipe:
        return small_recipe(method=method, **({"rank": "auto"} if method == "full" else {}) | changes)

    return make


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits of each model at the moment the trainer saves it."""
    import tunesmith.train.run as module

    seen = []
    publish = module._publish

    def note(run: Run, model: Any, **options: Any) -> Path:
        seen.append(logits(model))
        return publish(run, model, **options)

    monkeypatch.setattr(module, "_publish", note)
    return seen


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS_BT).logits.clone()


def reloaded(folder: Path) -> torch.Tensor:
    """Logits of what a folder holds, everything from disk."""
    tuned = find_tuned(folder)
    base = load_base(tuned.base, precision="float32", quantize=tuned.quantized)
    return logits(load_adapter(base, tuned.adapter) if tuned.adapter else base.model)


def stock(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_trained_proved_reloaded_and_merged(
    method: str, recipe_of: MakeRecipe, train_here: Train, in_memory: list[torch.Tensor], tmp_path: Path
) -> None:
    job = train_here(recipe_of(method, epochs=1), tmp_path / "run")
    run = job.run
    assert [check["passed"] for check in run.status["proof"]] == [True] * 4
    assert losses(run)[-1] < losses(run)[0]
    weights = run.model_dir if method == "full" else run.adapter_dir
    assert run.status[f"{weights.name}_sha256"] == weights_sha256(weights)
    assert torch.allclose(reloaded(run.directory), in_memory[0], atol=1e-5)

    (contender,) = build_contenders([f"adapter:{run.directory}"], precision="float32")
    (reply,) = contender.answer([[Message("user", "My card is lost")]], max_new_tokens=4)
    assert reply.completion_tokens > 0
    served = ServedModels.load({"tuned": str(run.directory)}, precision="float32").get("tuned")
    with served.engine.active(served.adapter) as model:
        assert torch.allclose(logits(model), in_memory[0], atol=1e-5)

    report = merge(run.directory, tmp_path / "merged")["merge"]
    assert report["stored"] == "float32"
    assert report["largest_logit_difference"] < 1e-4
    assert report["tokens_compared"] == sum(row.rendered.num_trained for row in job.plan.validation)
    merged = stock(tmp_path / "merged")
    if method != "qlora":
        assert torch.allclose(merged, in_memory[0], atol=1e-4)
        return
    assert report["to_the_4_bit_model"]["largest_logit_difference"] > 0
    unquantised = load_base(str(recipe_of(method).base), precision="float32")
    assert torch.allclose(merged, logits(load_adapter(unquantised, run.adapter_dir)), atol=1e-4)


@pytest.mark.parametrize("method", ["dora", pytest.param("qlora", marks=pytest.mark.slow), "full"])
def test_an_interrupted_run_goes_on_and_ends_at_the_same_bits(
    method: str, recipe_of: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    recipe = recipe_of(method, epochs=1)
    straight = train_here(recipe, tmp_path / "straight").run
    with pytest.raises(Interrupted):
        train_here(recipe, tmp_path / "run", stop_at(2))
    job = train_here(recipe, tmp_path / "run")
    assert job.resumed
    name = "model" if method == "full" else "adapter"
    assert job.run.status[f"{name}_sha256"] == straight.status[f"{name}_sha256"]
    assert losses(job.run) == losses(straight)


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_a_variant_is_written_as_stock_peft_reads_it(
    method: str, recipe_of: MakeRecipe, train_here: Train, in_memory: list[torch.Tensor], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = train_here(recipe_of(method, epochs=1), tmp_path / "run")
    config = json.loads((job.run.adapter_dir / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"]) == (method == "rslora", method == "dora")
    base = AutoModelForCausalLM.from_pretrained(job.recipe.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(job.run.adapter_dir))
    assert torch.allclose(logits(model), in_memory[0], atol=1e-5)
    tensors = load_file(job.run.adapter_dir / ADAPTER_FILE)
    assert any("lora_magnitude_vector" in name for name in tensors) == (method == "dora")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_dora_adapter_without_a_magnitude_vector_is_refused(
    recipe_of: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    job = train_here(recipe_of("dora", epochs=1), tmp_path / "run")
    tensors = load_file(job.run.adapter_dir / ADAPTER_FILE)
    del tensors[next(name for name in tensors if "magnitude" in name)]
    save_file(tensors, job.run.adapter_dir / ADAPTER_FILE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 places got none"):
        load_adapter(job.base, job.run.adapter_dir)


def test_a_dora_adapter_of_a_bfloat16_base_is_float32_and_finds_its_loss_again(
    recipe_of: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    job = train_here(recipe_of("dora", epochs=1, precision="bfloat16"), tmp_path / "run")
    tensors = load_file(job.run.adapter_dir / ADAPTER_FILE)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert job.run.status["state"] == "finished"


def test_merging_refuses_another_base_and_leaves_nothing(
    recipe_of: MakeRecipe, train_here: Train, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    run = train_here(recipe_of("lora", epochs=1, base=str(base)), tmp_path / "run").run
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="was trained on another base"):
        merge(run.directory, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


# -- full fine-tuning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_fully_trained_model_is_a_stock_folder_and_tied_weights_stay_tied(
    tied: bool, recipe_of: MakeRecipe, train_here: Train, tiny_base: Path, tmp_path: Path
) -> None:
    base = tiny_base if tied else untied(tiny_base, tmp_path / "untied")
    run = train_here(recipe_of("full", base=str(base), epochs=1), tmp_path / "run").run
    weights = load_file(run.model_dir / "model.safetensors")
    assert weights.keys() == load_file(base / "model.safetensors").keys()
    assert ("lm_head.weight" in weights) != tied
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    written = {path.name for path in run.model_dir.iterdir()}
    assert written == {path.name for path in base.iterdir()} | {"tunesmith.json"}
    for name in ("chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert (run.model_dir / name).read_bytes() == (base / name).read_bytes()
    assert torch.equal(stock(run.model_dir), reloaded(run.directory))
    assert not run.adapter_dir.exists()


def untied(tiny_base: Path, folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(tiny_base, folder)
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def test_a_base_that_was_trained_in_place_is_not_taken_for_the_base(
    recipe_of: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    spent = train_here(recipe_of("full", epochs=1), tmp_path / "run").base
    with pytest.raises(RunError, match="trained in place"):
        prepare(recipe_of("lora"), tmp_path / "next", say=lambda text: None, base=spent)
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"rank": 8}, "rank belong to an adapter"),
        ({"alpha": 8, "targets": ["q_proj"]}, "alpha, targets belong to an adapter"),
        ({"dropout": 0.1}, "dropout belong to an adapter"),
        ({"precision": "bfloat16"}, "trains float32 weights"),
    ],
)
def test_a_setting_that_full_fine_tuning_would_not_use_is_refused(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        recipe_from({"data": "d", "method": "full", **setting}, source="r.yaml")
    assert recipe_from({"data": "d", "method": "full", "rank": "auto", "dropout": 0}, source="r.yaml")


# -- four bits --------------------------------------------------------------------------------------------------------


def test_a_base_in_4_bits_has_the_gradients_of_its_dequantised_weights_also_after_a_validation(
    tiny_base: Path,
) -> None:
    import bitsandbytes

    base = load_base(str(tiny_base), precision="float32", quantize=True)
    plain = load_base(str(tiny_base), precision="float32")
    weights = dict(plain.model.named_parameters())
    layers = 0
    for name, parameter in base.model.named_parameters():
        if hasattr(parameter, "quant_state"):
            layers += 1
            weights[name].data = bitsandbytes.functional.dequantize_4bit(parameter.data, parameter.quant_state)
    assert layers == 2 * 7
    assert type(base.model.lm_head) is torch.nn.Linear
    with torch.inference_mode():  # on some processors this would repack the weights for inference
        base.model(input_ids=IDS_BT)
    gradients = []
    for model in (base.model, plain.model):
        embedded = plain.model.get_input_embeddings()(IDS_BT).detach().requires_grad_(True)
        model.train()(inputs_embeds=embedded, labels=IDS_BT).loss.backward()
        gradients.append(embedded.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in base.model.modules())


def test_without_bitsandbytes_the_install_line_is_named(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"pip install 'tunesmith\[qlora\]'"):
        load_base(str(tiny_base), precision="float32", quantize=True)


# -- settings ---------------------------------------------------------------------------------------------------------


def settled(tiny_base: Path, **values: Any) -> Settings:
    recipe = recipe_from({"data": "d", **values}, source="test")
    return settle(recipe, num_rows=100, facts=read_facts(tiny_base), hardware=detect())[0]


def test_defaults_follow_the_method(tiny_base: Path) -> None:
    lora, full = (settled(tiny_base, method=method) for method in ("lora", "full"))
    assert lora.learning_rate == pytest.approx(10 * full.learning_rate)
    assert (full.rank, full.alpha, full.targets) == (0, 0.0, ())
    rslora = settled(tiny_base, method="rslora")
    assert rslora.alpha / rslora.rank**0.5 == lora.alpha / lora.rank == 2
    assert settled(tiny_base, method="rslora", rank=64).alpha == rslora.alpha
