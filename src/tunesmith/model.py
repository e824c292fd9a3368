"""Load a base, put an adapter on it, save and reload the adapter in PEFT's format.

Not here: token ids (render), training, decoding (generate). Nothing that a folder brings is executed: safetensors only,
and no remote code. An adapter is pinned to the sha256 of its base and refused on another.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tunesmith.chat import Message
from tunesmith.embedded import embedded_base
from tunesmith.errors import InputError, ModelError
from tunesmith.facts import ModelFacts, read_facts, safetensors_header, weights_sha256
from tunesmith.recipe import EMBEDDED_BASE
from tunesmith.render import Renderer
from tunesmith.runs import Run, is_run

ADAPTER_FILE = "adapter_model.safetensors"
PIN_FILE = "tunesmith.json"


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base: the transformers model (evaluation mode, frozen), its renderer and what is known of it."""

    name: str
    facts: ModelFacts
    sha256: str
    model: Any
    renderer: Renderer
    dtype_reason: str


def find_base(name: str, say: Callable[[str], None] = lambda text: None) -> Path:
    """A local folder, else the embedded default, else the Hugging Face cache or hub. InputError when none has it."""
    if name and Path(name).is_dir():
        return Path(name)
    if name == EMBEDDED_BASE:
        return embedded_base(say)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise InputError(f"There is no folder {name!r}, and it is no Hugging Face name.", _bases_todo()) from error
    except Exception as error:  # offline, not found, not allowed: the library raises many kinds
        raise InputError(
            f"The base {name!r} is no folder and could not be had from the hub: {error}", _bases_todo()
        ) from error


def load_base(name: str, *, precision: str = "auto", say: Callable[[str], None] = lambda text: None) -> Base:
    """Find and load a base with its tokenizer, frozen. Raises ModelError or InputError with the reason."""
    from transformers import AutoModelForCausalLM

    path = find_base(name, say)
    facts = read_facts(path)
    dtype, reason = choose_dtype(precision)
    attention = "eager" if facts.model_type.startswith("gemma2") else "sdpa"  # soft caps need the plain form
    renderer = _load_renderer(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} could not be loaded: {error}", "Is it a decoder-only language model?") from error
    model.requires_grad_(False)
    model.eval()
    return Base(name, facts, weights_sha256(path), model, renderer, reason)


def load_renderer(name: str, *, say: Callable[[str], None] = lambda text: None) -> Renderer:
    """The tokenizer and template of a base, without its weights. Raises as `load_base`."""
    return _load_renderer(find_base(name, say))


def _load_renderer(path: Path) -> Renderer:
    from transformers import AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} has no tokenizer that loads: {error}", "A base needs tokenizer.json.") from error
    stops = GenerationConfig.from_pretrained(path).eos_token_id if (path / "generation_config.json").is_file() else None
    return Renderer(tokenizer, stop_ids=_as_ids(stops))


@lru_cache(maxsize=4)
def choose_dtype(precision: str) -> tuple[torch.dtype, str]:
    """The precision of the frozen base and why: what was asked, or by a short measurement.

    bfloat16 must be clearly faster: processors without native support emulate it several times slower, their flags do
    not tell reliably, and a close call must not come out differently the next time.
    """
    if precision != "auto":
        return getattr(torch, precision), "asked for"
    rates = {dtype: _gemm_gflops(dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = torch.bfloat16 if rates[torch.bfloat16] > 1.3 * rates[torch.float32] else torch.float32
    measured = ", ".join(f"{str(dtype)[6:]} {rate:.0f}" for dtype, rate in rates.items())
    return best, f"measured matrix products: {measured} GFLOP/s"


def attach_lora(base: Base, *, rank: int, alpha: float, dropout: float, targets: Sequence[str] | str) -> Any:
    """The base with a fresh LoRA adapter (float32, B = 0) as a PEFT model. Draws from torch's global generator."""
    from peft import LoraConfig, get_peft_model

    chosen = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen, task_type="CAUSAL_LM")
    try:
        with _quiet():
            model = get_peft_model(base.model, config)
    except ValueError as error:
        raise InputError(f"The adapter's targets {chosen!r} do not fit {base.name}: {error}") from error
    config.base_model_name_or_path = base.name
    return model


def save_adapter(model: Any, folder: Path, *, base: Base) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT does, and pin them to the base's sha256."""
    with _quiet():
        model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the network
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    pin = {
        "base": base.name,
        "base_sha256": base.sha256,
        "template_sha256": base.renderer.template_sha256,
        "stop_ids": sorted(base.renderer.stop_ids),
    }
    (folder / PIN_FILE).write_text(json.dumps(pin, indent=2), encoding="utf-8")


def adapter_folder(folder: Path) -> Path:
    """The adapter that a folder means: itself, or the `adapter/` of a run. Raises InputError for anything else.

    A run that is not finished has no adapter to show: only what was proved is used.
    """
    if not is_run(folder):
        return folder
    run = Run(folder)
    state = run.status["state"]
    if state != "finished":
        raise InputError(
            f"The run {folder} is {state}, not finished: it has no proved adapter.", "Start its command again."
        )
    return run.adapter_dir


def adapter_base(folder: Path) -> str:
    """The name of the base an adapter was trained on. Raises InputError when the folder is no adapter."""
    config = folder / "adapter_config.json"
    if not config.is_file() or not (folder / ADAPTER_FILE).is_file():
        raise InputError(
            f"{folder} is no adapter: it needs adapter_config.json and {ADAPTER_FILE}.", "`tunesmith runs` lists runs."
        )
    return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])


def load_adapter(base: Base, folder: Path, *, trainable: bool = False) -> Any:
    """Put a saved adapter on the base. ModelError for another base, or when a tensor of the file is not applied."""
    from peft import PeftModel

    _check_pin(base, folder)
    with _quiet():
        model = PeftModel.from_pretrained(base.model, str(folder), is_trainable=trainable)
    return _whole(model, folder, name="default")


def add_adapter(base: Base, folder: Path, *, name: str, model: Any | None = None) -> Any:
    """Put a saved adapter on the base under `name`, beside those of `model`, the result for the adapter before.

    `name` holds no dot. Switch with `model.set_adapter(name)`. Raises what `load_adapter` raises.
    """
    from peft import PeftModel

    _check_pin(base, folder)
    with _quiet():
        if model is None:
            model = PeftModel.from_pretrained(base.model, str(folder), adapter_name=name)
        else:
            model.load_adapter(str(folder), adapter_name=name)
            model.set_adapter(name, inference_mode=True)
    return _whole(model, folder, name=name)


@torch.inference_mode()
def logit_change(base: Base, model: Any) -> float:
    """Largest absolute difference that the active adapter makes to the logits of a short fixed conversation."""
    ids_BT = torch.tensor([base.renderer.prompt([Message("user", "Where is my card? I ordered it 9 days ago.")])])
    with_BTV = model(input_ids=ids_BT).logits
    with model.disable_adapter():
        without_BTV = model(input_ids=ids_BT).logits
    return float((with_BTV.float() - without_BTV.float()).abs().max())


def _check_pin(base: Base, folder: Path) -> None:
    adapter_base(folder)
    pin = json.loads((folder / PIN_FILE).read_text(encoding="utf-8")) if (folder / PIN_FILE).is_file() else {}
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
    in_file = set(safetensors_header(folder / ADAPTER_FILE))
    keys = (f"{key}." for key, _ in model.named_parameters() if "lora_" in key)
    on_model = {key.replace(f".{name}.", ".")[:-1] for key in keys if f".{name}." in key}
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


def detach(model: Any) -> Any:
    """Take the adapter off again; the base model is what it was before."""
    return model.unload()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the libraries' warnings about each other's names; what matters here is checked by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _gemm_gflops(dtype: torch.dtype) -> float:
    """Rate of a product as wide as a small model's, best of three of at most 30 ms each."""
    x, w = torch.randn(256, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
    torch.nn.functional.linear(x, w)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - start)
    return 2 * 256 * 576 * 1536 / best / 1e9


def _as_ids(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _bases_todo() -> str:
    return f"Name a folder, a Hugging Face model you may download, or {EMBEDDED_BASE}."
