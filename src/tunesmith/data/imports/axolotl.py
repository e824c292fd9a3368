"""An Axolotl config, key by key. Facts: its schemas and example configs of July 2026.

Not here: rows (rows), training arguments both trainers share (training).
Called by `config.import_config`: first `sources`, then, with the rows counted, `settle`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.data.imports import training
from tunesmith.data.imports.places import Places
from tunesmith.data.imports.rows import ROLES, Shape, Source
from tunesmith.data.imports.sheet import Foreign, Sheet

NAME = "Axolotl"
KEYS = ("base_model",)  # a config of Axolotl has these
COLUMNS = {
    "alpaca": Shape(prompt="instruction", query="input", answer="output"),
    "alpaca_w_system": Shape(prompt="instruction", query="input", answer="output", system="system"),
    "alpaca_w_system.load_open_orca": Shape(prompt="question", answer="response", system="system_prompt"),
    "alpaca_chat.load_qa": Shape(prompt="question", answer="answer"),
    "gpteacher": Shape(prompt="instruction", query="input", answer="response"),
    "oasst": Shape(prompt="INSTRUCTION", answer="RESPONSE"),
    "summarizetldr": Shape(prompt="article", answer="summary"),
}
PAIRS = {  # the part of the type after the template's name
    "intel": Shape(system="system", prompt="question", chosen="chosen", rejected="rejected"),
    "icr": Shape(system="system", prompt="input", chosen="chosen", rejected="rejected"),
    "prompt_pairs": Shape(system="system", prompt="prompt", chosen="chosen", rejected="rejected"),
    "ultra": Shape(system="system", prompt="prompt", chosen="chosen", rejected="rejected"),
    "argilla": Shape(system="system", prompt="instruction", chosen="chosen_response", rejected="rejected_response"),
    "argilla_chat": Shape(chosen="chosen", rejected="rejected"),
}
PREFERENCE = ("dpo", "ipo", "orpo", "simpo")
FOREIGN = (
    Foreign(r"(eval_)?sample_packing\w*|max_packed_sequence_len|pad_to_sequence_len|batch_flattening|multipack\w*",
            "rows are laid out without padding, and batch_size counts rows, not packed sequences",
            "batch_size rows a step; raise it if the rows are much shorter than sequence_len"),
    Foreign(r"chat_template\w*|default_system_message|is_\w+_derived_model|(model|processor)_type|base_model_config|\w+_kwargs",
            "how a conversation is written is the base's", "the base's own chat template and class"),
    Foreign(r"lora_modules_to_save|lora_target_parameters|lora_(rank|alpha)_pattern|peft\w*|loraplus_\w+|relora\w*|lora_(fan\w+|on_cpu)"
            r"|lora_model_dir|lisa_\w+|unfrozen_parameters|freeze_\w+",
            "the adapter is one size on every target, and nothing else is trained", "an adapter of rank on targets"),
    Foreign(r"load_in_8bit|fp8\w*|gptq\w*|bnb_config_kwargs|quantize_\w+|qat|quantization|model_quantization\w*|use_onebitllms",
            "the only quantised base is method qlora's, in 4 bits (NF4)", "the base in 'precision'"),
    Foreign(r"pretraining_dataset", "pretraining on a stream of text", "only datasets are read"),
    Foreign(r"dataset_exact_deduplication", "rows are never removed without a word", "`tunesmith check` lists them"),
    Foreign(r"train_on_inputs", "the loss is on assistant turns only", "assistant turns"),
    Foreign(r"excess_length_strategy", "rows are never cut", "a row that is too long is dropped, with a ledger entry"),
    Foreign(r"(dpo|orpo|kto|simpo|cpo|rl|trl|vllm|ebft|center_rewards)_?\w*|reward_model|process_reward_model|num_labels",
            "training on preferences or rewards", "nothing"),
    Foreign(r"lr_\w+|cosine_\w+|neftune_\w+|loss_watchdog_\w+|curriculum_sampling|eta_min|jagged_\w+|group_by_length|use_eaft|eaft_\w+",
            "a variant of the schedule, the loss or the order of rows", "half a cosine, plain loss, rows shuffled"),
    Foreign(r"strict|debug|secrets|val_\w+|auto_resume_from_checkpoints|resume_from_checkpoint", "about running it",
            "the same `tunesmith train` command goes on where it stopped"),
    *training.FOREIGN,
)  # fmt: skip
DATASET_FOREIGN = (
    Foreign(r".*\.(revision|name|shards|shards_idx|preprocess_shards|trust_remote_code)", "fetching from a hub",
            "the file that is here"),
    Foreign(r".*\.(chat_template\w*|input_format|input_transform|\w+_thinking\w*|\w*thinking)", "how a row is written",
            "the base's own chat template"),
    Foreign(r".*\.(train_on_eos|train_on_eot|message_field_training_detail)", "which tokens of an answer are trained",
            "the whole answer and its end of turn"),
    Foreign(r".*\.type\..*format", "a prompt put together from a pattern", "prompt and input, each on its line"),
)  # fmt: skip


def sources(sheet: Sheet, places: Places) -> tuple[list[Source], list[Source]]:
    """The training and the validation data sets, in the config's order; settles every key inside them."""
    found = []
    for group in ("datasets", "test_datasets"):
        entries = sheet.get(group, [])
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            sheet.lacks(group, "no list of data sets", instead="nothing")
            entries = []
        elif entries:
            sheet.open(group, {f"{group}[{index}]": entry for index, entry in enumerate(entries)})
        found.append([_source(sheet, f"{group}[{index}]", entry, places) for index, entry in enumerate(entries)])
    return found[0], found[1]


def settle(sheet: Sheet, num_rows: int | None) -> None:
    _adapter(sheet)
    training.plain(
        sheet,
        {
            "base_model": "base", "learning_rate": "learning_rate", "weight_decay": "weight_decay", "seed": "seed",
            "max_grad_norm": "max_grad_norm", "early_stopping_patience": "patience", "sequence_len": "max_length",
            "evals_per_epoch": "validations_per_epoch",
        },
    )  # fmt: skip
    sheet.assume("patience", None, text="training never stops early where early_stopping_patience is not said")
    sheet.assume("max_length", 512, text="sequence_len is 512 where it is not said")
    sheet.assume("seed", 42, text="seed is 42 where it is not said")
    if sheet.get("batch_size") and not sheet.get("gradient_accumulation_steps"):
        sheet.use("batch_size", batch_size=sheet.get("batch_size"))
        sheet.same("micro_batch_size", "batch_size rows a step, whatever fits at once")
    training.batch(sheet, "micro_batch_size", accumulate_key="gradient_accumulation_steps", default_micro=1)
    training.validation_share(sheet, "val_set_size", num_rows=num_rows)
    training.epochs(sheet, "num_epochs", default=1, num_rows=num_rows)
    training.warmup(sheet, num_rows=num_rows)
    training.optimizer(sheet, "optimizer", scheduler_key="lr_scheduler", scheduler_default="cosine")
    training.precision(sheet)
    training.equal_if(sheet, {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "train_on_inputs": False})
    if sheet.get("saves_per_epoch") == sheet.recipe.get("validations_per_epoch", 2):
        sheet.same("saves_per_epoch", "a checkpoint is saved at every validation")
    training.trackers(
        sheet, {"wandb_project": "wandb", "use_tensorboard": "tensorboard", "trackio_project_name": "trackio"}
    )
    if sheet.get("output_dir"):
        sheet.use("output_dir", f"the run's directory: --out {sheet.get('output_dir')}")
    if sheet.get("rl"):
        training.preferences(sheet, "rl", beta_keys=("rl_beta", "dpo_beta"))
    if sheet.get("chat_template") == "tokenizer_default":
        sheet.same("chat_template", "the base's own template")
    sheet.settle_rest((*DATASET_FOREIGN, *FOREIGN), tool=NAME)


def _adapter(sheet: Sheet) -> None:
    kind = sheet.get("adapter")
    if kind not in (None, "lora", "qlora"):
        sheet.lacks("adapter", "another kind of adapter", instead="method: lora")
        kind = "lora"
    variants = [name for name in ("dora", "rslora") if sheet.get(f"peft_use_{name}")]
    method = "full" if kind is None else "qlora" if kind == "qlora" or sheet.get("load_in_4bit") else "lora"
    if method == "lora" and variants:
        method = variants[0]
        sheet.use(f"peft_use_{method}", method=method)
    sheet.recipe["method"] = method
    sheet.use("adapter", method=method)
    if kind is None:
        sheet.assumed["method"] = "without an adapter all weights are trained"
        for key in sheet.config:
            if key.startswith(("lora_", "peft_")) or key in ("load_in_4bit", "load_in_8bit"):
                sheet.same(key, "not used without an adapter")
        return
    if sheet.get("load_in_4bit"):
        sheet.use("load_in_4bit", method=method)
    elif kind == "lora":
        sheet.same("load_in_4bit", "off")
    training.plain(sheet, {"lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"})
    if sheet.get("lora_target_linear"):
        sheet.use("lora_target_linear", targets="all-linear")
        sheet.same("lora_target_modules", "contained in all-linear")
    training.equal_if(sheet, {"lora_target_linear": False, "peft_use_dora": False, "peft_use_rslora": False})
    training.adapter_targets(sheet, "lora_target_modules")


def _source(sheet: Sheet, place: str, entry: Mapping[str, Any], places: Places) -> Source:
    """One entry of datasets: where its file is, how its rows are read, which of them are taken."""
    name = str(entry.get("path"))
    files = entry.get("data_files")
    first = files[0] if isinstance(files, list) and len(files) == 1 else files
    is_one = first is None or isinstance(first, str)
    if not is_one:
        why = "several files in one data set" if isinstance(first, list) else "it names no file"
        sheet.lacks(f"{place}.data_files", why, instead="nothing: give one file with --data")
    path = places.find(name, inside=first) if is_one else None
    keys = [key for key in ("path", "data_files") if entry.get(key)]
    for key in keys:
        if path:
            sheet.use(f"{place}.{key}", f"read from {path}")
        else:
            sheet.lacks(f"{place}.{key}", "it is not on this machine", instead=f"fetch it, and give --data {name}=FILE")
    sheet.same(f"{place}.ds_type", "seen from the file")
    source = Source(name, path, _shape(sheet, place, entry))
    return _taken(sheet, f"{place}.split", source, entry.get("split"))


def _taken(sheet: Sheet, key: str, source: Source, split: Any) -> Source:
    """`train`, `train[:500]` or `train[:20%]` of a data set; other splits are other files."""
    match = re.fullmatch(r"train(?:\[:(\d+)(%?)\])?", str(split))
    if not match:
        sheet.lacks(key, "a split of a hub's data set", instead="all rows of the file that is here")
        return source
    if not match[1]:
        sheet.same(key, "all rows of the file")
        return source
    sheet.use(key, f"the first {match[1]}{match[2] or ' rows'}")
    count = int(match[1])
    return replace(source, share=count / 100) if match[2] else replace(source, limit=count)


def _shape(sheet: Sheet, place: str, entry: Mapping[str, Any]) -> Shape | None:
    kind = entry.get("type")
    shape = None
    rl = sheet.get("rl")
    if isinstance(kind, dict):
        shape = _own_columns(sheet, f"{place}.type", kind, rl)
    elif isinstance(kind, str) and (rl is None or rl in PREFERENCE):
        shape = _named(sheet, place, entry, kind)
    if shape is None:
        sheet.lacks(
            f"{place}.type",
            "rows of this type have no equal",
            instead="nothing: give the rows in our form, with --data",
        )
    return shape


def _named(sheet: Sheet, place: str, entry: Mapping[str, Any], kind: str) -> Shape | None:
    head, _, tail = kind.partition(".")
    shape: Shape | None
    pairs = sheet.get("rl") in PREFERENCE
    if head == "chat_template" and tail in ("", "default") or head == "sharegpt":
        turns = _turns(sheet, place, entry, sharegpt=head == "sharegpt")
        if pairs:
            names: dict[str, Any] = {side: str(entry.get(f"field_{side}") or side) for side in ("chosen", "rejected")}
            for side, name in names.items():
                sheet.use(f"{place}.field_{side}", f"the column '{name}'")
            turns = replace(turns, **names)
        sheet.use(f"{place}.type", "turns, in the base's chat template")
        return turns
    if pairs:
        shape = PAIRS.get(tail)
    elif kind == "completion":
        text = str(entry.get("field") or "text")
        shape = Shape(text=text)
        sheet.use(f"{place}.field", f"the text is in '{text}'")
    else:
        shape = COLUMNS.get(kind.partition(":")[0])
    if shape:
        style = "" if shape.text else "; asked in the base's chat template, not in the type's own wording"
        columns = ", ".join(
            filter(None, (shape.system, shape.prompt, shape.query, shape.answer, shape.text, shape.chosen))
        )
        sheet.use(f"{place}.type", f"columns {columns}{style}")
    return shape


def _turns(sheet: Sheet, place: str, entry: Mapping[str, Any], *, sharegpt: bool) -> Shape:
    mapping, named = (
        part if isinstance(part := entry.get(key), dict) else {} for key in ("message_property_mappings", "roles")
    )
    default = ("conversations", "from", "value") if sharegpt else ("messages", "role", "content")
    column = str(entry.get("field_messages") or default[0])
    role = str(mapping.get("role") or entry.get("message_field_role") or default[1])
    content = str(mapping.get("content") or entry.get("message_field_content") or default[2])
    roles = dict(ROLES)
    for target, names in named.items():
        roles |= {str(one): str(target) for one in (names if isinstance(names, list) else [names])}
    told = {
        "field_messages": f"turns are in '{column}'",
        "message_property_mappings": f"role is '{role}', content '{content}'",
        "message_field_role": f"role is '{role}'",
        "message_field_content": f"content is '{content}'",
        "roles": "roles renamed",
        "field_tools": f"tools are in '{entry.get('field_tools')}'",
        "message_field_training": f"weight of a turn from '{entry.get('message_field_training')}'",
    }
    for key, text in told.items():
        if entry.get(key):
            sheet.use(f"{place}.{key}", text)
    if entry.get("drop_system_message"):
        sheet.use(f"{place}.drop_system_message", "system turns are left out")
    _trained_roles(sheet, place, entry)
    return Shape(
        messages=column, role_key=role, content_key=content, roles=roles,
        tools=str(entry.get("field_tools") or "tools"), trained_key=str(entry.get("message_field_training") or ""),
        drop_system=bool(entry.get("drop_system_message")),
    )  # fmt: skip


def _trained_roles(sheet: Sheet, place: str, entry: Mapping[str, Any]) -> None:
    if entry.get("roles_to_train") in (["assistant"], ["gpt"]):
        sheet.same(f"{place}.roles_to_train", "assistant turns are what is trained")
    else:
        sheet.lacks(f"{place}.roles_to_train", "the loss is on assistant turns only", instead="assistant turns")
    if entry.get("train_on_eos") == "turn":
        sheet.same(f"{place}.train_on_eos", "each trained answer's end of turn is trained")


def _own_columns(sheet: Sheet, place: str, kind: Mapping[str, Any], rl: Any) -> Shape | None:
    """`type` as a description: which field is what."""
    sheet.open(place, {place: kind})
    pairs = rl in PREFERENCE
    names = {"field_system": "system", "field_prompt": "prompt", "field_instruction": "prompt", "field_input": "query"}
    names |= {"field_chosen": "chosen", "field_rejected": "rejected"} if pairs else {"field_output": "answer"}
    defaults = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"} if pairs else {}
    columns: dict[str, Any] = defaults | {target: str(kind[key]) for key, target in names.items() if kind.get(key)}
    for key, target in names.items():
        if kind.get(key):
            sheet.use(f"{place}.{key}", f"{target}: '{kind[key]}'")
    if kind.get("system_prompt"):
        sheet.use(f"{place}.system_prompt", "a system turn before each row without one")
        columns["system_text"] = str(kind["system_prompt"])
    if "prompt" not in columns or not (pairs or "answer" in columns):
        return None
    return Shape(**columns)
