"""A base, or a LoRA adapter, as a GGUF file for llama.cpp; each is made once and kept in the model cache.

Not here: running it (serve.engines.llamacpp), the tokenizer's part (export.gguf_tokenizer). First version: the Llama
architecture in four types; what llama.cpp would compute otherwise than transformers is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError, ModelError
from tunesmith.export.gguf_tokenizer import add_bare_ids, add_tokenizer
from tunesmith.facts import file_sha256, safetensors_header, weights_sha256
from tunesmith.folders import home, sync

KINDS = ("f32", "f16", "bf16", "q8_0")
FORMAT = "v1"  # of what is written here: raised when the same base would become another file
SPARE = 64  # positions; llama.cpp ends a reply one token before the context is full
TODO = "Use --engine torch."

LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OTHER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

Say = Callable[[str], None]


def export_base(
    path: Path, kind: str, *, sha256: str, stop_id: int | None = None, say: Say = lambda text: None
) -> Path:
    """The GGUF file of a base's folder, whose weights have this sha256; `kind` is what its matrices are stored in.

    Vectors stay in float32. With `stop_id` the file holds numbers in place of the tokenizer (`add_bare_ids`): for an
    engine that is only ever given ids. Raises ModelError for another architecture, InputError for an unknown kind.
    """
    if kind not in KINDS:
        raise InputError(f"There is no GGUF type {kind!r} here.", f"The types are: {', '.join(KINDS)}.")
    config = _llama_config(path)
    companions = [path / name for name in ("config.json", "tokenizer.json", "chat_template.jinja")]
    about = "".join(file_sha256(file) for file in companions if file.is_file())
    target = _cached(f"{sha256[:16]}-{_short(about)}-{kind}{'' if stop_id is None else f'-ids-{stop_id}'}")
    if not target.is_file():
        say(f"Writing {path.name} as a GGUF file in {kind} to {target} (once).")
        with _written(target) as writer:
            _add_architecture(writer, config, kind)
            writer.add_context_length(config["max_position_embeddings"] + (0 if stop_id is None else SPARE))
            if stop_id is None:
                add_tokenizer(writer, path, size=config["vocab_size"])
            else:
                add_bare_ids(writer, stop_id, size=config["vocab_size"])
            _write_tensors(writer, path, config=config, kind=kind)
    return target


def export_adapter(folder: Path, base: Path) -> Path:
    """The GGUF file, in float32, of a LoRA adapter on linear layers of the base in folder `base`.

    Raises ModelError for an adapter that is more than A and B, for one of another shape, and for one without effect.
    """
    from tunesmith.bank import why_not

    if reason := why_not(folder):
        raise ModelError(f"{folder} has no form in GGUF: {reason}.", TODO)
    config = _llama_config(base)
    about = file_sha256(folder / "adapter_config.json") + file_sha256(base / "config.json")
    target = _cached(f"{weights_sha256(folder)[:16]}-{_short(about)}-lora")
    if not target.is_file():
        with _written(target) as writer:
            _add_adapter(writer, folder, config=config)
    return target


def _llama_config(path: Path) -> dict[str, Any]:
    """config.json. Raises ModelError for whatever llama.cpp's "llama" would compute in another way."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "llama":
        kind = config.get("model_type", "unknown")
        raise ModelError(f"{path} is of the architecture {kind!r}; llamacpp knows 'llama' only, so far.", TODO)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    others = {
        "rope_type": rope.get("rope_type", "default") not in ("default", None),
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
    }
    if found := [name for name, differs in others.items() if differs]:
        raise ModelError(f"{path / 'config.json'} sets {found[0]}, which has no form in GGUF here.", TODO)
    return config


def _head_size(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _add_architecture(writer: Any, config: dict[str, Any], kind: str) -> None:
    import gguf

    files = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    writer.add_type("model")
    writer.add_file_type(gguf.LlamaFileType[files[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _write_tensors(writer: Any, path: Path, *, config: dict[str, Any], kind: str) -> None:
    """One after the other, so that a large base is never in memory twice."""
    import gguf
    import numpy as np
    from safetensors import safe_open

    tied = config.get("tie_word_embeddings", False)
    places = {
        name: (file, entry["shape"])
        for file in sorted(path.glob("*.safetensors"))
        for name, entry in safetensors_header(file).items()
        if not (tied and name == "lm_head.weight")
    }
    types = {name: _type_of(shape, kind) for name, (_, shape) in places.items()}
    for name, (_, shape) in places.items():
        block, size = gguf.GGML_QUANT_SIZES[types[name]]
        num_bytes = math.prod(shape) // block * size
        writer.add_tensor_info(_gguf_name(name), shape, np.dtype(np.float32), num_bytes, raw_dtype=types[name])
    _open(writer)
    for name, (file, _) in places.items():
        with safe_open(file, framework="pt") as tensors:
            value = _permuted(tensors.get_tensor(name).float(), name, config).contiguous().numpy()
        stored = gguf.quantize(value, types[name])
        if stored.dtype == np.float16 and not np.isfinite(stored).all():
            raise ModelError(f"{name} of {path} holds numbers beyond float16.", "Take f32 or bf16.")
        writer.write_tensor_data(stored)


def _type_of(shape: list[int], kind: str) -> Any:
    """Vectors in float32; rows that do not fill q8_0's blocks in float16."""
    import gguf

    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    fits = shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0] == 0
    return gguf.GGMLQuantizationType["F16" if kind == "q8_0" and not fits else kind.upper()]


def _add_adapter(writer: Any, folder: Path, *, config: dict[str, Any]) -> None:
    import gguf
    import torch
    from safetensors.torch import load_file

    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank, alpha = settings["r"], float(settings["lora_alpha"])
    tensors = load_file(folder / "adapter_model.safetensors")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp scales by alpha / rank, rank-stabilised LoRA by alpha / sqrt(rank)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha * rank**0.5 if settings.get("use_rslora") else alpha)
    changes = False
    for name, value in tensors.items():
        layer, side = _lora_name(name, folder)
        if side == "b":
            changes = changes or bool(torch.any(value))
            value = _permuted(value.float(), layer, config)
        writer.add_tensor(f"{_gguf_name(layer)}.lora_{side}", value.float().contiguous().numpy())
    if not changes:
        raise ModelError(f"{folder} does not change what its base answers.", "Train it again; it must not be served.")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()


def _lora_name(name: str, folder: Path) -> tuple[str, str]:
    """base_model.model.X.lora_A.weight -> X.weight, a."""
    layer, _, rest = name.removeprefix("base_model.model.").rpartition(".lora_")
    if not layer or rest not in ("A.weight", "B.weight"):
        raise ModelError(f"{folder} holds {name}, which has no form in GGUF here.", TODO)
    return f"{layer}.weight", rest[0].lower()


def _permuted(value: Any, name: str, config: dict[str, Any]) -> Any:
    """Rows of Q and K as llama.cpp's "llama" wants them: transformers turns the halves of a head against each other,
    llama.cpp neighbours."""
    heads = config["num_attention_heads"]
    if name.endswith("k_proj.weight"):
        heads = config.get("num_key_value_heads") or heads
    elif not name.endswith("q_proj.weight"):
        return value
    return value.reshape(heads, 2, _head_size(config) // 2, -1).transpose(1, 2).reshape(value.shape)


def _gguf_name(name: str) -> str:
    """Raises ModelError for a tensor that Llama does not have."""
    stem, _, kind = name.rpartition(".")
    if stem in OTHER_NAMES:
        return f"{OTHER_NAMES[stem]}.{kind}"
    parts = stem.split(".", 3)
    if parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in LAYER_NAMES and kind == "weight":
        return f"blk.{parts[2]}.{LAYER_NAMES[parts[3]]}.{kind}"
    raise ModelError(f"The tensor {name} has no place in GGUF's Llama.", TODO)


def _open(writer: Any) -> None:
    """All that is known goes to the file; tensors follow."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


@contextmanager
def _written(target: Path) -> Iterator[Any]:
    """A writer of a file beside the target, which gets its name once all of it is on the disk."""
    import os

    import gguf

    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(staged, "llama")
    try:
        yield writer
        writer.close()
        sync(staged)
        staged.replace(target)
        sync(target.parent)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error}.", "Make room, or use --engine torch.") from error
    finally:
        writer.close()
        staged.unlink(missing_ok=True)


def _cached(name: str) -> Path:
    return home() / "models" / "gguf" / f"{name}-{FORMAT}.gguf"


def _short(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]
