"""What training makes of a base, and how it is kept: an adapter in PEFT's format, or a whole model in transformers'.

Not here: finding and loading a base (model), training, decoding (generate). Stock tools load every file. An adapter is
pinned to the sha256 of its base and refused on another; a merged model is compared with what it was merged from.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tunesmith.chat import Example, Message, parse_row
from tunesmith.errors import InputError, ModelError
from tunesmith.facts import safetensors_header, weights_sha256
from tunesmith.model import Base, load_base
from tunesmith.render import Rendered, RenderError
from tunesmith.runs import Run, is_run
from tunesmith.store import find_folder

ADAPTER_FILE = "adapter_model.safetensors"
PIN_FILE = "tunesmith.json"
# Of a base's folder, what a model made of it keeps as it is; its weights and config.json are written anew.
COMPANIONS = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "LICENSE*", "NOTICE*")

MERGE_TOLERANCE = 1e-3  # of the logits, where weights are stored in float32
MERGE_AGREEMENT = 0.95  # of the best tokens, where they are rounded to 16 bits
COMPARED_TOKENS = 256
ANSWERS = (
    ("Where is my card? I ordered it 9 days ago.", "I am sorry to hear that. It should have arrived by now."),
    ("What is 12 times 7?", "12 times 7 is 84."),
    ("Name three colours.", "Red, green and blue."),
    ("Write one sentence about the sea.", "The sea was calm, and the boats lay still in the evening light."),
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What answers when the folder of a run, an adapter or a trained model is named: a base, and an adapter on it.

    `adapter` is None where all weights were trained, or an adapter was merged: then `base` is the trained model.
    """

    base: str
    adapter: Path | None
    quantized: bool  # the base is to be held in 4 bits, as it was in training


def find_tuned(folder: Path) -> Tuned:
    """What a folder, or what an alias points at, holds. Raises InputError for a run that is not finished, and for
    anything that was not trained."""
    found = adapter_folder(find_folder(folder))
    if (found / "config.json").is_file() and "base_sha256" in _pin(found):
        return Tuned(str(found), None, False)
    return Tuned(adapter_base(found), found, bool(_pin(found).get("quantized")))


def adapter_folder(folder: Path) -> Path:
    """The trained weights that a folder means: itself, or the `adapter/` (or `model/`) of a run.

    Raises InputError for a run that is not finished: only what was proved is used.
    """
    if not is_run(folder):
        return folder
    run = Run(folder)
    state = run.status["state"]
    if state != "finished":
        raise InputError(
            f"The run {folder} is {state}, not finished: it has no proved adapter.", "Start its command again."
        )
    return run.weights_dir


def adapter_base(folder: Path) -> str:
    """The name of the base an adapter was trained on. Raises InputError when the folder is no adapter."""
    config = folder / "adapter_config.json"
    if not config.is_file() or not (folder / ADAPTER_FILE).is_file():
        raise InputError(
            f"{folder} is no adapter: it needs adapter_config.json and {ADAPTER_FILE}.", "`tunesmith runs` lists runs."
        )
    return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])


def attach_lora(
    base: Base, *, rank: int, alpha: float, dropout: float, targets: Sequence[str] | str, method: str = "lora"
) -> Any:
    """The base with a fresh LoRA adapter (float32, B = 0) as a PEFT model. Draws from torch's global generator.

    `method` "rslora" scales by alpha / sqrt(rank) (Kalajdzievski 2023), "dora" trains the length of each output
    separately (Liu et al. 2024); any other scales by alpha / rank.
    """
    from peft import LoraConfig, get_peft_model

    chosen = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=chosen,
        task_type="CAUSAL_LM",
        use_rslora=method == "rslora",
        use_dora=method == "dora",
    )
    try:
        with _quiet():
            model = get_peft_model(base.model, config)
    except ValueError as error:
        raise InputError(f"The adapter's targets {chosen!r} do not fit {base.name}: {error}") from error
    config.base_model_name_or_path = base.name
    return model


def detach(model: Any) -> Any:
    """Take the adapter off again; the base model is what it was before."""
    return model.unload()


def unfreeze(base: Base) -> Any:
    """The base's own model, all weights trained. It is trained in place: load the base again for anything else."""
    base.model.requires_grad_(True)
    return base.model


def save_adapter(model: Any, folder: Path, *, base: Base) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT does, and pin them to the base's sha256."""
    with _quiet():
        model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the network
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    _write_pin(folder, _adapter_pin(base))


def save_form(model: Any, folder: Path, *, base: Base) -> None:
    """What `save_adapter` writes beside the weights: with those of a checkpoint it is an adapter."""
    folder.mkdir(exist_ok=True)
    model.peft_config["default"].save_pretrained(folder)
    _write_pin(folder, _adapter_pin(base))


def save_model(model: Any, folder: Path, *, base: Base, facts: dict[str, Any]) -> None:
    """Write a stock model folder: weights and config.json by transformers, all else the base's own files.

    `facts` go into its tunesmith.json, beside the base it was made of.
    """
    model.save_pretrained(folder)
    for file in (file for pattern in COMPANIONS for file in base.facts.path.glob(pattern)):
        if file.name not in ("config.json", PIN_FILE) and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    _write_pin(folder, _pin_to(base) | facts)


def load_adapter(base: Base, folder: Path, *, trainable: bool = False) -> Any:
    """Put a saved adapter on the base. ModelError for another base, or when a tensor of the file is not applied."""
    from peft import PeftModel

    check_pin(base, folder)
    with _quiet():
        model = PeftModel.from_pretrained(base.model, str(folder), is_trainable=trainable)
    return _whole(model, folder, name="default")


def add_adapter(base: Base, folder: Path, *, name: str, model: Any | None = None) -> Any:
    """Put a saved adapter on the base under `name`, beside those of `model`, the result for the adapter before.

    `name` holds no dot. Switch with `model.set_adapter(name)`. Raises ModelError; nothing of it is left on then.
    """
    from peft import PeftModel

    check_pin(base, folder)
    before = model
    try:
        with _quiet():
            if model is None:
                model = PeftModel.from_pretrained(base.model, str(folder), adapter_name=name)
            else:
                model.load_adapter(str(folder), adapter_name=name)
                model.set_adapter(name, inference_mode=True)
        return _whole(model, folder, name=name)
    except Exception as error:  # whatever PEFT raises, it has put its layers on before it reads the weights
        if before is None:
            _unwrap(base.model)
        elif name in before.peft_config:
            before.delete_adapter(name)
        if isinstance(error, ModelError):
            raise
        todo = "Name the base it was trained on, or copy it again."
        raise ModelError(f"{folder} does not fit this base: {error}", todo) from error


def _unwrap(model: Any) -> None:
    """Put each layer that PEFT has put its own around back in its place."""
    for name, module in list(model.named_modules()):
        own = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if own is not None:
            model.set_submodule(name, own)


@torch.inference_mode()
def logit_change(base: Base, model: Any) -> float:
    """Largest absolute difference that the active adapter makes to the logits of a short fixed conversation."""
    ids_BT = torch.tensor([base.renderer.prompt([Message("user", ANSWERS[0][0])])], device=model.device)
    with_BTV = model(input_ids=ids_BT).logits
    with model.disable_adapter():
        without_BTV = model(input_ids=ids_BT).logits
    return float((with_BTV.float() - without_BTV.float()).abs().max())


def merge(folder: Path, out: Path, *, say: Say = lambda text: None) -> dict[str, Any]:
    """Write what `folder` holds (as `find_tuned`) as one stock model folder; returns its tunesmith.json.

    Merged in float32, also where the base was held in 4 bits in training. Stored as the base is, if that keeps the
    answers: before the folder gets its name it is loaded again and its logits, computed in float32, are compared with
    those before the merge. 16 bits that change too many best tokens give way to float32.
    Raises InputError when `out` exists, ModelError when the merged model does not answer as the parts did.
    """
    tuned = find_tuned(folder)
    if out.exists():
        raise InputError(f"{out} exists.", "Choose another --out, or remove it.")
    base = load_base(tuned.base, precision="float32", say=say)
    rows = _compared_rows(folder, base)
    model = load_adapter(base, tuned.adapter) if tuned.adapter else base.model
    before_NV = _answer_logits(model, rows)
    with _quiet():
        merged = model.merge_and_unload(safe_merge=True) if tuned.adapter else model
    facts = {"adapter_sha256": weights_sha256(tuned.adapter)} if tuned.adapter else _pin(base.facts.path)
    staged = out.with_name(f".{out.name}.staged")
    try:
        report, after_NV = _save_alike(merged, staged, base=base, facts=facts, rows=rows, before_NV=before_NV, say=say)
        if tuned.adapter and tuned.quantized:
            del model, merged, base
            base = load_base(tuned.base, precision="float32", quantize=True)
            trained_NV = _answer_logits(load_adapter(base, tuned.adapter), rows)
            report["to_the_4_bit_model"] = _compare(trained_NV, after_NV)
        _write_pin(staged, _pin(staged) | {"merge": report})
        staged.replace(out)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{out} cannot be written: {error}.", "Make room, or choose another --out.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return _pin(out)


def _save_alike(
    model: Any,
    folder: Path,
    *,
    base: Base,
    facts: dict[str, Any],
    rows: Sequence[Rendered],
    before_NV: torch.Tensor,
    say: Say,
) -> tuple[dict[str, Any], torch.Tensor]:
    """Save a float32 model in the base's stored precision, or else in float32, so that loaded again it answers as
    before; the comparison, and the logits of what was saved. Raises ModelError when it never does."""
    report: dict[str, Any] = {}
    for dtype in dict.fromkeys((_stored_dtype(base.facts.path), torch.float32)):
        name = str(dtype).removeprefix("torch.")
        say(f"Writing {name} weights and comparing their logits with those before the merge.")
        shutil.rmtree(folder, ignore_errors=True)
        cast = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        save_model(cast, folder, base=base, facts=facts)
        del cast
        after_NV = _answer_logits(load_base(str(folder), precision="float32").model, rows)
        found = {"stored": name, **_compare(before_NV, after_NV)}
        report = found | ({"instead_of": report} if report else {})
        if dtype == torch.float32 and report["largest_logit_difference"] <= MERGE_TOLERANCE:
            return report, after_NV
        if dtype != torch.float32 and report["argmax_agreement"] >= MERGE_AGREEMENT:
            return report, after_NV
        say(f"Stored in {name} it does not answer as its parts do: {difference_in_words(report)}.")
    raise ModelError(
        f"The merged model does not answer as its parts do: {difference_in_words(report)}.",
        "Nothing was written; serve the adapter on its base.",
    )


def difference_in_words(compared: dict[str, Any]) -> str:
    """What `merge` reports of a comparison, for people."""
    return (
        f"the best token is the same at {compared['argmax_agreement']:.1%} of {compared['tokens_compared']} answer "
        f"tokens, logits differ by up to {compared['largest_logit_difference']:.2g}"
    )


def _compared_rows(folder: Path, base: Base) -> list[Rendered]:
    """Validation rows of a run, else a few fixed ones, that have about COMPARED_TOKENS answer tokens."""
    examples = [Example((Message("user", q), Message("assistant", a, trained=True))) for q, a in ANSWERS]
    if is_run(folder):
        lines = (folder / "validation.jsonl").read_text(encoding="utf-8").split("\n")
        examples = [example for line in lines if line and (example := parse_row(json.loads(line))[0])]
    rows: list[Rendered] = []
    for example in examples:
        with contextlib.suppress(RenderError):  # such a row was dropped from the run too
            row = base.renderer.render(example)
            rows += [row] if len(row.ids) <= base.facts.max_positions else []
        if sum(row.num_trained for row in rows) >= COMPARED_TOKENS:
            break
    return rows


@torch.inference_mode()
def _answer_logits(model: Any, rows: Sequence[Rendered]) -> torch.Tensor:
    """The logits that predict the answers' tokens: one row of the vocabulary's size for each (N, V)."""
    found = []
    for row in rows:
        places_N = torch.tensor(row.trained[1:]).nonzero()[:, 0]
        output = model(input_ids=torch.tensor([row.ids], device=model.device), logits_to_keep=places_N)
        found.append(output.logits[0].float())
    return torch.cat(found)[:COMPARED_TOKENS]


def _compare(before_NV: torch.Tensor, after_NV: torch.Tensor) -> dict[str, Any]:
    return {
        "tokens_compared": len(before_NV),
        "largest_logit_difference": float((before_NV - after_NV).abs().max()),
        "argmax_agreement": float((before_NV.argmax(-1) == after_NV.argmax(-1)).float().mean()),
    }


def _stored_dtype(path: Path) -> torch.dtype:
    """What all weights of the folder are stored in; float32 where they differ."""
    headers = (safetensors_header(file) for file in path.glob("*.safetensors"))
    kinds = {entry["dtype"] for header in headers for entry in header.values()}
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get("".join(kinds), torch.float32)


def _pin_to(base: Base) -> dict[str, Any]:
    return {
        "base": base.name,
        "base_sha256": base.sha256,
        "template_sha256": base.renderer.template_sha256,
        "stop_ids": sorted(base.renderer.stop_ids),
    }


def _adapter_pin(base: Base) -> dict[str, Any]:
    return _pin_to(base) | ({"quantized": True} if base.quantized else {})


def _write_pin(folder: Path, pin: dict[str, Any]) -> None:
    (folder / PIN_FILE).write_text(json.dumps(pin, indent=2), encoding="utf-8")


def _pin(folder: Path) -> dict[str, Any]:
    path = folder / PIN_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def check_pin(base: Base, folder: Path) -> None:
    """Raises ModelError for an adapter of another base or template, InputError for a folder that holds none."""
    adapter_base(folder)
    pin = _pin(folder)
    if pin.get("base_sha256", base.sha256) != base.sha256:
        raise ModelError(
            f"{folder} was trained on another base: sha256 {pin['base_sha256'][:12]}, "
            f"and {base.name} has {base.sha256[:12]}.",
            f"Load it on {pin['base']}.",
        )
    if pin.get("template_sha256", base.renderer.template_sha256) != base.renderer.template_sha256:
        raise ModelError(
            f"{folder} was trained with another chat template than {base.name} has now.", "Restore the template."
        )


def _whole(model: Any, folder: Path, *, name: str) -> Any:
    """The model in evaluation mode, once every tensor of the adapter's file is on it; else the adapter is taken off."""
    from peft import get_peft_model_state_dict

    in_file = set(safetensors_header(folder / ADAPTER_FILE))
    on_model = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if in_file != on_model:
        if len(model.peft_config) > 1:
            model.delete_adapter(name)
        else:
            detach(model)
        raise ModelError(
            f"{folder} does not fit this base: of its {len(in_file)} tensors {len(in_file - on_model)} have no place "
            f"on it, and {len(on_model - in_file)} places got none.",
            "Name the base it was trained on, or copy it again.",
        )
    model.eval()
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the libraries' warnings about each other's names; what matters here is checked by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
