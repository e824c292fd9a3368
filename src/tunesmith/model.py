"""Find and load a base: a local folder, the embedded default, or one of the Hugging Face hub; as it is or in 4 bits.

Not here: token ids (render), adapters and trained models (adapter), decoding (generate). Nothing that a folder brings
is executed: safetensors only, and no remote code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.embedded import embedded_base
from tunesmith.errors import InputError, ModelError
from tunesmith.facts import ModelFacts, read_facts, weights_sha256
from tunesmith.hardware import keep_freed_memory
from tunesmith.products import choose_dtype
from tunesmith.recipe import EMBEDDED_BASE
from tunesmith.render import Renderer


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base: the transformers model (evaluation mode, frozen), its renderer and what is known of it.

    `quantized`: its linear layers are held in 4 bits; `sha256` is of the files, the same either way.
    """

    name: str
    facts: ModelFacts
    sha256: str
    model: Any
    renderer: Renderer
    dtype_reason: str
    quantized: bool = False

    @property
    def trained_in_place(self) -> bool:
        """Whether a full fine-tuning has changed its weights: it is not the base any more."""
        return any(parameter.requires_grad for parameter in self.model.parameters())


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


def load_base(
    name: str, *, precision: str = "auto", quantize: bool = False, say: Callable[[str], None] = lambda text: None
) -> Base:
    """Find and load a base with its tokenizer, frozen; `quantize` holds its linear layers in 4 bits (QLoRA's NF4).

    Raises ModelError or InputError with the reason.
    """
    from transformers import AutoModelForCausalLM

    keep_freed_memory()
    path = find_base(name, say)
    facts = read_facts(path)
    dtype, reason = choose_dtype(precision)
    attention = "eager" if facts.model_type.startswith("gemma2") else "sdpa"  # soft caps need the plain form
    renderer = _load_renderer(path)
    options = _four_bit_options(dtype) if quantize else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} could not be loaded: {error}", "Is it a decoder-only language model?") from error
    if quantize:
        _keep_gradients(model)
    else:
        model.to(_device())
    model.requires_grad_(False)
    model.eval()
    return Base(name, facts, weights_sha256(path), model, renderer, reason, quantize)


def _four_bit_options(dtype: torch.dtype) -> dict[str, Any]:
    """NF4 with double quantisation (Dettmers et al. 2023, QLoRA); embeddings and output layer stay as they are."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise InputError(
            "A base in 4 bits needs the package bitsandbytes.", "Install it: pip install 'tunesmith[qlora]'"
        ) from error
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": _device()}}


def _device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _keep_gradients(model: Any) -> None:
    """On processors with AVX512-BF16 a forward without gradients, such as a validation, would pack the weights for a
    kernel that computes in bfloat16 and has no backward; the training steps after it would be wrong (bitsandbytes
    0.50.2, nn/modules.py, Linear4bit.forward)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


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


def _as_ids(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _bases_todo() -> str:
    return f"Name a folder, a Hugging Face model you may download, or {EMBEDDED_BASE}."
