"""Training arguments that both trainers take from transformers under nearly the same names.

Not here: keys of one trainer only (axolotl, llamafactory), data (rows).
Called by the translators, after the rows have been counted where they are here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tunesmith.data.imports.sheet import NOT_SET, Foreign, Sheet, number

ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "adamw_apex_fused")
WHOLE = "AdamW with float32 states"
TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")

# Where work lies and how fast it is; the result does not depend on it beyond float error.
SPEED = (
    r"liger_\w+|flash_\w+|\w*attn\w*|\w*attention\w*|\w*_kernels?|cut_cross_entropy|chunked_cross_entropy\w*|torch_compile\w*"
    r"|tiled_mlp\w*|pad_to_\w+|unsloth_\w+|use_unsloth\w*|enable_liger_kernel|tf32|low_cpu_mem_usage|plugins"
    r"|use_(kernels|scattermoe|sonicmoe|kt|v1_kernels)|kt_\w+|kernel_config|experts_implementation"
)
DEVICES = (
    r"fsdp\w*|deepspeed\w*|ddp\w*|dp_\w+|\w*parallel\w*|device_map|device|max_memory|world_size|local_rank|use_ray|ray_\w+"
    r"|accelerator_config|dist_config|torchdistx_path|gpu\w*|sequence_parallel_degree|heads_k_stride|ring_attn_func"
)
OFTEN = r"logging_\w+|save_\w+|eval_\w+|evals_per_epoch|saves_per_epoch|evaluation_strategy|load_best_model_at_end"
LOADING = (
    r"dataset_(processes|num_proc|prepared_path|keep_in_memory|shard\w*)|dataloader_\w+|preprocessing_\w+|overwrite_\w+"
    r"|remove_unused_columns|skip_prepare_dataset|shuffle_\w+|tokenized_path|streaming\w*|buffer_size|data_shared_file_system"
)
FOREIGN = (
    Foreign(SPEED, "how fast a step is", "the fastest route measured on this machine", False),
    Foreign(DEVICES, "how the work is spread over devices", "one process on this machine", False),
    Foreign(OFTEN, "when it is measured and saved", "both at validations_per_epoch; every step is logged", False),
    Foreign(LOADING, "how rows are read and cached", "rows are read once; each run keeps its own copy", False),
    Foreign(r"\w*gradient_checkpointing\w*|activation_offloading|selective_checkpointing|\w*reentrant\w*|layer_offloading",
            "memory, not the result", "layers are computed again where memory asks for it", False),
    Foreign(r"(wandb|swanlab|mlflow|comet|trackio|otel|use_otel|use_swanlab)_?\w*|run_name|report_to|plot_loss|project_name",
            "a tracker's own setting", "set it in that tracker's environment; runs are named by their id", False),
    Foreign(r"hub_\w+|revision_of_model|push_\w*|hf_use_auth_token|export_\w+|merge_\w+",
            "uploading and exporting", "nothing is uploaded", False),
    Foreign(r"adam_\w+|optim_\w+", "AdamW's betas and epsilon are fixed", "0.9, 0.999 and 1e-8"),
    Foreign(r"(new_)?special_tokens\w*|tokens|\w*eot_tokens|tokenizer_\w+|add_(special_)?tokens|added_tokens_\w+|resize_\w+",
            "the vocabulary is the base's", "the base's own tokenizer; its end of turn is trained"),
    Foreign(r"trust_remote_code", "code from a model's folder is never run", "the base's class is transformers' own"),
)  # fmt: skip


def plain(sheet: Sheet, names: dict[str, str]) -> None:
    """Keys that mean the same under another name."""
    for key, name in names.items():
        if sheet.get(key) is not None:
            sheet.use(key, **{name: number(sheet.get(key))})


def equal_if(sheet: Sheet, values: dict[str, Any]) -> None:
    """Keys whose value is what is done anyway."""
    for key, value in values.items():
        if key in sheet.config and number(sheet.config[key]) == value:
            sheet.same(key, "what is done anyway")


def batch(sheet: Sheet, micro_key: str, *, accumulate_key: str, default_micro: int) -> None:
    """Rows of an optimiser step = micro-batch x accumulation, on one device."""
    micro, accumulate = number(sheet.get(micro_key, default_micro)), number(sheet.get(accumulate_key, 1))
    if not (isinstance(micro, int) and isinstance(accumulate, int)):
        return
    text = f"batch_size: {micro} x {accumulate} = {micro * accumulate} rows, as on one device"
    for key in (micro_key, accumulate_key):
        sheet.use(key, text, batch_size=micro * accumulate)
    sheet.assume("batch_size", micro * accumulate, text=text)


def epochs(sheet: Sheet, key: str, *, default: int, num_rows: int | None) -> None:
    value = number(sheet.get(key, default))
    if isinstance(value, float) and value > 0:
        whole = max(1, round(value))
        sheet.recipe["epochs"] = whole
        sheet.lacks(key, "epochs are whole here", instead=f"epochs: {whole}")
    elif key in sheet.config and sheet.get(key) is not None:
        sheet.use(key, epochs=value)
    sheet.assume("epochs", default, text=f"{key} is {default} where it is not said")
    steps = number(sheet.get("max_steps", -1))
    if not isinstance(steps, int) or steps <= 0:
        sheet.same("max_steps", "no limit")
    elif num_rows:
        count = max(1, math.ceil(steps * sheet.recipe.get("batch_size", 16) / num_rows))
        sheet.recipe["epochs"] = min(count, max(1, sheet.recipe["epochs"]))
        sheet.lacks(
            "max_steps", "a run is whole epochs", instead=f"epochs: {sheet.recipe['epochs']}, from {num_rows:,} rows"
        )
    else:
        sheet.lacks(
            "max_steps", "a run is whole epochs, and the rows are not here to count", instead="epochs, as given"
        )


def validation_share(sheet: Sheet, key: str, *, num_rows: int | None) -> None:
    """A share, or a count of rows, split off. 0 has no equal: a run always watches a loss it does not train on."""
    value = number(sheet.get(key, 0))
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        sheet.lacks(key, "is neither a share nor a count", instead="validation_fraction: 0.1")
    elif 0 < value < 1:
        sheet.use(key, validation_fraction=value)
    elif value >= 1 and num_rows and value < num_rows:
        share = round(value / num_rows, 6)
        sheet.use(key, f"validation_fraction: {share} ({value} of {num_rows:,} rows)", validation_fraction=share)
    elif value >= 1:
        sheet.lacks(key, "a count of rows, and the rows are not here to count", instead="validation_fraction: 0.1")
    elif "validation" not in sheet.recipe:
        sheet.lacks(key, "every run is watched on rows it does not train on", instead="validation_fraction: 0.1")
    else:
        sheet.same(key, "there is a validation file")


def warmup(sheet: Sheet, *, num_rows: int | None) -> None:
    """Steps, or a share of the steps: transformers reads a warmup_steps below 1 as a share too."""
    for key in ("warmup_steps", "warmup_ratio"):
        value = number(sheet.get(key))
        if value is None or isinstance(value, str | bool):
            continue
        if key == "warmup_steps" and isinstance(value, int):
            sheet.use(key, warmup_steps=value)
        elif key == "warmup_ratio" and "warmup_steps" in sheet.recipe:
            sheet.same(key, "warmup_steps stands before it")
        elif value == 0:
            sheet.use(key, warmup_steps=0)
        elif num_steps := _num_steps(sheet, num_rows):
            steps = math.ceil(value * num_steps)
            sheet.use(key, f"warmup_steps: {steps}, {value} of {num_steps} steps", warmup_steps=steps)
        else:
            sheet.lacks(
                key, "a share of the steps, and the rows are not here to count", instead="warmup_steps: auto (3 %)"
            )


def _num_steps(sheet: Sheet, num_rows: int | None) -> int:
    if not num_rows:
        return 0
    trained = (
        num_rows if "validation" in sheet.recipe else num_rows * (1 - sheet.recipe.get("validation_fraction", 0.1))
    )
    return math.ceil(trained / sheet.recipe["batch_size"]) * int(sheet.recipe["epochs"])


def optimizer(sheet: Sheet, key: str, *, scheduler_key: str, scheduler_default: str) -> None:
    name = str(sheet.get(key, "adamw_torch"))
    if name in ADAMW:
        sheet.same(key, "AdamW")
    elif "adamw" in name:
        sheet.lacks(key, "an AdamW with smaller or paged states", instead=WHOLE)
    else:
        sheet.lacks(
            key, "another optimiser", instead=WHOLE + "; check the learning rate, it was chosen for the other one"
        )
    scheduler = str(sheet.get(scheduler_key, scheduler_default))
    if scheduler == "cosine":
        sheet.same(scheduler_key, "half a cosine down to 0")
    elif scheduler_key in sheet.config:
        sheet.lacks(scheduler_key, f"another schedule ({scheduler})", instead="half a cosine down to 0")
    else:
        sheet.assumed["schedule"] = f"{scheduler} where it is not said; here it is half a cosine down to 0"


def precision(sheet: Sheet) -> None:
    """Of the frozen base. A full training is in float32 here."""
    full = sheet.recipe.get("method") == "full"
    on = {key: sheet.get(key) for key in ("bf16", "bfloat16", "fp16", "float16", "pure_bf16", "fp8", "float32")}
    for key, value in on.items():
        if value == "auto":
            sheet.same(key, "precision: auto")
        elif not value or key in ("fp8",):
            continue
        elif full and key != "float32":
            sheet.lacks(key, "method full trains float32 weights", instead="float32")
        elif key in ("bf16", "bfloat16", "pure_bf16"):
            sheet.use(key, precision="bfloat16")
        elif key == "float32":
            sheet.use(key, precision="float32")
        else:
            sheet.lacks(key, "float16 loses small gradients", instead="precision: auto")
    for key in on:
        if key in sheet.config and sheet.config[key] in (False, *NOT_SET):
            sheet.same(key, "off")


def preferences(sheet: Sheet, key: str, *, beta_keys: Sequence[str], loss_key: str = "") -> None:
    """DPO with its own loss, on a plain LoRA adapter, is the method dpo; any other training on preferences has no
    equal."""
    loss = sheet.get(loss_key, "sigmoid") if loss_key else "sigmoid"
    if sheet.get(key) != "dpo" or loss != "sigmoid" or sheet.recipe.get("method") != "lora":
        why = "a method the recipe does not have" if sheet.get(key) != "dpo" else "here dpo has one loss, on plain LoRA"
        sheet.lacks(key, why, instead="`tunesmith train` refuses the rows until method is dpo")
        return
    sheet.use(key, method="dpo")
    if loss_key:
        sheet.same(loss_key, "what dpo goes down on")
    for name in beta_keys:
        if sheet.get(name) is not None:
            beta = number(sheet.get(name))
            sheet.use(name, f"beta: {beta}", method="dpo", beta=beta)


def trackers(sheet: Sheet, names: dict[str, str]) -> None:
    """`names`: a key that switches a tracker on when it is set, and the tracker."""
    for key, tracker in names.items():
        if sheet.get(key) in (None, False):
            continue
        found = list(dict.fromkeys([*sheet.recipe.get("trackers", []), tracker]))
        sheet.use(key, f"trackers: {tracker}; runs are in the project 'tunesmith'", trackers=found)


def adapter_targets(sheet: Sheet, key: str) -> None:
    """A list of layer names, a text of them with commas, or all; a pattern has no equal."""
    value = sheet.get(key)
    if value is None:
        return
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if names in (["all"], ["all-linear"]):
        sheet.use(key, targets="all-linear")
    elif isinstance(names, list) and all(str(name).replace(".", "").replace("_", "").isalnum() for name in names):
        sheet.use(key, targets=names)
    else:
        sheet.lacks(key, "a pattern; targets are names here", instead="targets: all-linear")
