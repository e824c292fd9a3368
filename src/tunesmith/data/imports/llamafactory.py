"""A LLaMA-Factory config and its dataset_info.json, key by key. Facts: its arguments and examples of August 2026.

Not here: rows (rows), training arguments both trainers share (training).
Called by `config.import_config`: first `sources`, then, with the rows counted, `settle`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.imports import training
from tunesmith.data.imports.places import Places
from tunesmith.data.imports.rows import ROLES, Shape, Source
from tunesmith.data.imports.sheet import Foreign, Sheet, number
from tunesmith.errors import InputError

NAME = "LLaMA-Factory"
KEYS = ("model_name_or_path",)
INFO = "dataset_info.json"
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}  # its defaults
TAGS = {
    "user_tag": ("human", "user"), "assistant_tag": ("gpt", "assistant"), "system_tag": ("system", "system"),
    "observation_tag": ("observation", "tool"), "function_tag": ("function_call", "function_call"),
}  # fmt: skip
HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
FOREIGN = (
    Foreign(r"template|tool_format|\w*_thinking|default_system|processor_type|image_\w+|video_\w+|audio_\w+|media_dir",
            "how a conversation is written is the base's", "the base's own chat template; texts only"),
    Foreign(r"neat_packing|packing", "rows are laid out without padding; batch_size counts rows", "batch_size rows"),
    Foreign(r"(pref|dpo|kto|simpo|ppo|reward|ref|ld)_\w+", "training on preferences or rewards", "nothing"),
    Foreign(r"additional_target|create_new_adapter|adapter_\w+|pissa_\w+|loraplus_\w+|oft_\w+|freeze_\w+|module_dropout"
            r"|use_llama_pro|mixture_of_depths|rope_scaling|shift_attn",
            "the adapter is one size on every target, and nothing else is trained", "an adapter of rank on targets"),
    Foreign(r"use_(galore|apollo|badam|adam_mini|muon|mca|megatron_bridge|hyper_parallel)|(galore|apollo|badam|asft|eaft|optim)_\w+"
            r"|use_(dft|asft|eaft)_loss|neftune_\w+|disable_shuffling|lr_\w+|use_swanlab|megatron_\w+|hyper_parallel_\w+",
            "a variant of the optimiser, of the loss or of the order of rows", "AdamW, plain loss, rows shuffled"),
    Foreign(r"quantization_\w+|double_quantization|quant_config|fp8\w*|upcast_\w+",
            "the only quantised base is method qlora's, in 4 bits (NF4)", "the base in 'precision'"),
    Foreign(r"do_\w+|predict_\w+|infer_\w+|max_new_tokens|per_device_eval_batch_size|compute_accuracy|temperature|top_\w|include_\w+",
            "evaluating and answering are commands of their own", "`tunesmith evaluate`, `tunesmith chat`"),
    Foreign(r"mix_strategy|interleave_probs|eval_on_each_dataset|train_on_prompt|ignore_pad_token_for_loss|early_stopping_steps"
            r"|resume_from_checkpoint|cache_dir|model_revision|use_fast_tokenizer|data_seed|hf_hub_token|ms_hub_token",
            "no setting here", "data sets one after the other; the loss on assistant turns; the same command goes on"),
    *training.FOREIGN,
)  # fmt: skip
DATASET_FOREIGN = (
    Foreign(
        r"dataset_info\[.*\]\.(subset|split|folder)", "a part of a hub's data set", "all rows of the file that is here"
    ),
    Foreign(r"dataset_info\[.*\]\.columns\.(images|videos|audios|kto_tag)", "texts only, and no rewards", "nothing"),
)


def sources(sheet: Sheet, places: Places) -> tuple[list[Source], list[Source]]:
    """The data sets that `dataset` and `eval_dataset` name, as dataset_info.json describes them."""
    info, folder = _info(sheet, places)
    found = []
    for key in ("dataset", "eval_dataset"):
        value = sheet.get(key, [])
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            sheet.lacks(key, "no names of data sets", instead="nothing")
            names = []
        sheet.use(key, f"{', '.join(names)}, as {INFO} describes them")
        unknown = [name for name in names if info and name not in info]
        if unknown:
            raise InputError(
                f"{folder / INFO} has no data set {', '.join(unknown)}.", "Correct the name in the config."
            )
        inside = Places(folder, places.given)
        found.append([_source(sheet, name, info.get(name, {}), inside) for name in names])
    return found[0], found[1]


def settle(sheet: Sheet, num_rows: int | None) -> None:
    _adapter(sheet)
    training.plain(
        sheet,
        {
            "model_name_or_path": "base", "learning_rate": "learning_rate", "weight_decay": "weight_decay",
            "seed": "seed", "max_grad_norm": "max_grad_norm",
        },
    )  # fmt: skip
    length = number(sheet.get("cutoff_len"))
    if length is not None:
        sheet.use("cutoff_len", f"max_length: {length}; a longer row is dropped, not cut", max_length=length)
    sheet.assume("max_length", 2048, text="cutoff_len is 2048 where it is not said")
    sheet.assume("learning_rate", 5e-5, text="learning_rate is 5e-5 where it is not said")
    sheet.assume("seed", 42, text="seed is 42 where it is not said")
    sheet.assume("patience", None, text="training does not stop early")
    training.batch(sheet, "per_device_train_batch_size", accumulate_key="gradient_accumulation_steps", default_micro=8)
    training.validation_share(sheet, "val_size", num_rows=num_rows)
    training.epochs(sheet, "num_train_epochs", default=3, num_rows=num_rows)
    training.warmup(sheet, num_rows=num_rows)
    sheet.assume("warmup_steps", 0, text="there is no warm-up where none is said")
    training.optimizer(sheet, "optim", scheduler_key="lr_scheduler_type", scheduler_default="linear")
    training.precision(sheet)
    training.equal_if(
        sheet,
        {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "train_on_prompt": False, "do_train": True},
    )
    if sheet.get("mask_history"):
        sheet.use("mask_history", "weight 0 on every answer but the last")
    if isinstance(number(sheet.get("max_samples")), int):
        sheet.use("max_samples", f"the first {sheet.get('max_samples')} rows of each data set")
    _reports(sheet)
    stage = sheet.get("stage", "sft")
    if stage == "sft":
        sheet.same("stage", "what is trained here")
    else:
        training.preferences(sheet, "stage", beta_keys=("pref_beta",), loss_key="pref_loss")
    if sheet.get("output_dir"):
        sheet.use("output_dir", f"the run's directory: --out {sheet.get('output_dir')}")
    sheet.settle_rest((*DATASET_FOREIGN, *FOREIGN), tool=NAME)


def _adapter(sheet: Sheet) -> None:
    kind = sheet.get("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        sheet.lacks("finetuning_type", f"{kind} is not a method here", instead="method: lora")
    if kind == "full":
        sheet.use("finetuning_type", method="full")
        for key in sheet.config:
            if key.startswith("lora_") or key in ("use_dora", "use_rslora"):
                sheet.same(key, "not used without an adapter")
        return
    variants = [name for name in ("dora", "rslora") if sheet.get(f"use_{name}")]
    method = variants[0] if variants else "lora"
    if number(sheet.get("quantization_bit")) == 4 and sheet.get("quantization_method", "bnb") in (
        "bnb",
        "bitsandbytes",
    ):
        method = "qlora"
        sheet.use("quantization_bit", method=method)
        sheet.same("quantization_method", "bitsandbytes, as method qlora")
    sheet.recipe["method"] = method
    sheet.use("finetuning_type", method=method)
    for name in variants:
        if name == method:
            sheet.use(f"use_{name}", method=method)
        else:
            sheet.lacks(f"use_{name}", f"not together with {method}", instead=f"method: {method}")
    for name in ("dora", "rslora"):
        training.equal_if(sheet, {f"use_{name}": False})
    training.plain(sheet, {"lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"})
    training.adapter_targets(sheet, "lora_target")
    sheet.assume("rank", 8, text="lora_rank is 8 where it is not said")
    sheet.assume("alpha", 2 * int(sheet.recipe["rank"]), text="lora_alpha is twice lora_rank where it is not said")


def _reports(sheet: Sheet) -> None:
    names = sheet.get("report_to", [])
    names = names if isinstance(names, list) else [names]
    known = [name for name in names if name in training.TRACKERS]
    if names in ([], ["none"]):
        sheet.same("report_to", "none")
    elif len(known) == len(names):
        sheet.use("report_to", trackers=known)


def _info(sheet: Sheet, places: Places) -> tuple[dict[str, Any], Path]:
    """dataset_info.json and its folder; nothing, and the config's folder, where it is not on this machine."""
    name = sheet.get("dataset_dir", "data")
    folder = places.find(name) if isinstance(name, str) else None
    path = folder / INFO if folder else None
    if path is None or not path.exists():
        sheet.lacks("dataset_dir", f"there is no {INFO} in it here", instead="give --data NAME=FILE for each data set")
        return {}, places.folder
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Mend it.") from error
    if not (isinstance(info, dict) and all(isinstance(entry, dict) for entry in info.values())):
        raise InputError(f"{path} is no object of data sets.", "Write a name and a description for each.")
    sheet.use("dataset_dir", f"{path} describes the data sets")
    return info, path.parent


def _source(sheet: Sheet, name: str, entry: Mapping[str, Any], places: Places) -> Source:
    place = f"dataset_info[{name}]"
    nested = {f"{place}.{key}": entry[key] for key in ("columns", "tags") if isinstance(entry.get(key), dict)}
    sheet.open(place, {place: {key: value for key, value in entry.items() if f"{place}.{key}" not in nested}, **nested})
    file = next((str(entry[key]) for key in HUBS if entry.get(key)), name)
    path = places.given.get(name) or (places.find(file) if "file_name" in entry or not entry else None)
    for key in HUBS:
        if path:
            sheet.use(f"{place}.{key}", f"read from {path}")
        else:
            sheet.lacks(f"{place}.{key}", "it is not on this machine", instead=f"fetch it, and give --data {name}=FILE")
    wanted = [number(one) for one in (sheet.get("max_samples"), entry.get("num_samples"))]
    limit = min((one for one in wanted if isinstance(one, int) and one > 0), default=None)
    sheet.use(f"{place}.num_samples", f"the first {limit} rows")
    return Source(name, path, _shape(sheet, place, entry), limit=limit)


def _shape(sheet: Sheet, place: str, entry: Mapping[str, Any]) -> Shape | None:
    columns, tags = (part if isinstance(part := entry.get(key), dict) else {} for key in ("columns", "tags"))
    turns = entry.get("formatting", "alpaca") in ("sharegpt", "openai")
    pairs = bool(entry.get("ranking"))
    sheet.use(f"{place}.formatting", "turns" if turns else "columns")
    sheet.use(f"{place}.ranking", "pairs of a chosen and a rejected answer" if pairs else "rows with one answer")
    unread = [key for key in ("images", "videos", "audios", "kto_tag") if columns.get(key)]
    for group, values in (("columns", columns), ("tags", tags)):
        for key, value in values.items():
            if key not in unread:
                sheet.use(f"{place}.{group}.{key}", f"'{value}'")
    if unread:
        return None
    # Its rule: a description that names columns names all of them; without `columns` the defaults hold.
    named = columns or ({"messages": "conversations"} if turns else dict(COLUMNS))
    shared: dict[str, Any] = {key: str(named.get(key) or "") for key in ("system", "tools")}
    if pairs:
        shared |= {key: str(named.get(key) or key) for key in ("chosen", "rejected")}
    if turns:
        openai = entry.get("formatting") == "openai"
        roles = {str(tags.get(tag) or default): role for tag, (default, role) in TAGS.items()}
        roles |= ROLES if openai else {}
        keys: dict[str, Any] = {"role_key": str(tags.get("role_tag") or ("role" if openai else "from"))}
        keys["content_key"] = str(tags.get("content_tag") or ("content" if openai else "value"))
        messages = str(named.get("messages") or "conversations")
        return Shape(messages=messages, roles=roles, only_last=bool(sheet.get("mask_history")), **keys, **shared)
    if sheet.get("stage") == "pt":
        return Shape(text=str(named.get("prompt") or "text"))
    read: dict[str, str] = {"prompt": "prompt", "query": "query", "history": "history"} | (
        {} if pairs else {"answer": "response"}
    )
    texts: dict[str, Any] = {target: str(named.get(column) or "") for target, column in read.items()}
    return Shape(**texts, only_last=bool(sheet.get("mask_history")), **shared)
