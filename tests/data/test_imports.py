"""Configs of Axolotl and LLaMA-Factory: every key is accounted for, the recipe holds, the rows are ours."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.imports.config import Imported, import_config
from tunesmith.data.load import load_examples
from tunesmith.errors import DataError, InputError
from tunesmith.recipe import Recipe, read_recipe, recipe_from

ALPACA = [{"instruction": f"Say {n}", "input": "in words" if n % 2 else "", "output": f"number {n}"} for n in range(40)]
AXOLOTL = {
    "base_model": "org/Model-1B",
    "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "alpaca"}],
    "val_set_size": 0.1,
    "sequence_len": 2048,
    "adapter": "lora",
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_linear": True,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": "2e-4",
    "optimizer": "adamw_bnb_8bit",
    "lr_scheduler": "cosine",
    "num_epochs": 3,
    "warmup_ratio": 0.1,
    "bf16": "auto",
    "sample_packing": True,
    "gradient_checkpointing": True,
    "flash_attention": True,
    "wandb_project": None,
    "output_dir": "./outputs/out",
    "flux_capacitor": 88,
}
LLAMAFACTORY = {
    "model_name_or_path": "org/Model-1B",
    "stage": "sft",
    "finetuning_type": "lora",
    "lora_target": "q_proj,v_proj",
    "dataset": "talks",
    "dataset_dir": "data",
    "template": "llama3",
    "cutoff_len": 1024,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "report_to": "none",
}


def write(folder: Path, config: dict[str, Any], name: str = "config.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / name


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(folder: Path, config: dict[str, Any], **options: Any) -> Imported:
    return import_config(write(folder, config), out=folder / "out", given=options.pop("given", {}), **options)


def recipe_of(imported: Imported) -> Recipe:
    return recipe_from(read_recipe(imported.recipe), source="test")


def keys_of(imported: Imported) -> list[str]:
    return [one.key for one in (*imported.used, *imported.default_equal, *imported.no_equal)]


def test_an_axolotl_config_becomes_a_recipe_and_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ALPACA)
    imported = run(tmp_path, AXOLOTL)
    recipe = recipe_of(imported)
    assert (recipe.base, recipe.method, recipe.rank, recipe.alpha, recipe.dropout) == (
        "org/Model-1B",
        "lora",
        32,
        16,
        0.05,
    )
    assert (recipe.targets, recipe.batch_size, recipe.epochs, recipe.learning_rate) == ("all-linear", 8, 3, 2e-4)
    assert (recipe.max_length, recipe.validation_fraction, recipe.seed, recipe.patience) == (2048, 0.1, 42, None)
    assert recipe.warmup_steps == 2  # a tenth of 3 epochs of 5 steps, rounded up
    examples = [row.example for row in load_examples(recipe.data).examples]
    assert [one.prompt[0].content for one in examples[:2]] == ["Say 0", "Say 1\nin words"]
    assert len(examples) == 40 and imported.missing == [] and imported.run_dir == "./outputs/out"


def test_settings_without_an_equal_say_why_and_what_is_done_instead(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ALPACA)
    lacking = {one.key: one for one in run(tmp_path, AXOLOTL).no_equal}
    assert {"optimizer", "sample_packing", "flux_capacitor"} <= {key for key, one in lacking.items() if one.matters}
    assert {"flash_attention", "gradient_checkpointing"} <= {key for key, one in lacking.items() if not one.matters}
    assert all(one.text and one.instead for one in lacking.values())
    assert "flux_capacitor: 88" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_a_llama_factory_config_reads_its_dataset_descriptions(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}, {"from": "human", "value": "and?"}]
    rows = [
        {"conversations": [*talk, {"from": "gpt", "value": f"bye {n}"}], "system": "Be kind.", "id": n}
        for n in range(9)
    ]
    write_rows(tmp_path / "data" / "talks.jsonl", rows)
    columns = {"messages": "conversations", "system": "system"}
    info = {"talks": {"file_name": "talks.jsonl", "formatting": "sharegpt", "columns": columns}, "other": {}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    imported = run(tmp_path, LLAMAFACTORY | {"mask_history": True, "max_samples": 5})
    recipe = recipe_of(imported)
    assert (recipe.targets, recipe.batch_size, recipe.max_length, recipe.epochs) == (["q_proj", "v_proj"], 8, 1024, 3)
    assert (recipe.rank, recipe.alpha, recipe.learning_rate) == (8, 16, 5e-5) and {"rank", "alpha"} <= set(
        imported.assumed
    )
    examples = [row.example for row in load_examples(recipe.data).examples]
    assert [turn.role for turn in examples[0].messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.trained for turn in examples[0].messages] == [False, False, False, False, True]
    assert len(examples) == 5 and imported.rows[0].columns_left_out == ("id",)
    assert "dataset_info[talks].columns.messages" in keys_of(imported)


def test_an_alpaca_description_names_its_own_columns_and_a_json_array_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"question": f"q{n}", "reply": f"a{n}", "before": [["q", "a"]]} for n in range(4)]
    (tmp_path / "data" / "talks.json").write_text(json.dumps(rows))
    columns = {"prompt": "question", "response": "reply", "history": "before"}
    info = {"talks": {"file_name": "talks.json", "columns": columns}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    recipe = recipe_of(run(tmp_path, LLAMAFACTORY))
    example = load_examples(recipe.data).examples[3].example
    assert [turn.content for turn in example.messages] == ["q", "a", "q3", "a3"]


def test_calls_of_tools_become_tool_calls(tmp_path: Path) -> None:
    call = {"from": "function_call", "value": json.dumps({"name": "now", "arguments": {"zone": "UTC"}})}
    talk = [
        {"from": "human", "value": "time?"},
        call,
        {"from": "observation", "value": "12:00"},
        {"from": "gpt", "value": "Noon."},
    ]
    tools = json.dumps([{"name": "now", "description": "the time", "parameters": {"type": "object", "properties": {}}}])
    write_rows(tmp_path / "data" / "talks.jsonl", [{"conversations": talk, "tools": tools}] * 3)
    columns = {"messages": "conversations", "tools": "tools"}
    info = {"talks": {"file_name": "talks.jsonl", "formatting": "sharegpt", "columns": columns}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    example = load_examples(recipe_of(run(tmp_path, LLAMAFACTORY)).data).examples[0].example
    assert example.messages[1].tool_calls[0].name == "now"
    assert json.loads(example.messages[1].tool_calls[0].arguments) == {"zone": "UTC"}
    assert example.tools[0]["function"]["name"] == "now"


def test_turns_under_other_names_are_mapped_and_slices_are_taken(tmp_path: Path) -> None:
    turns = [{"who": "bot", "what": "old"}, {"who": "person", "what": "q"}, {"who": "bot", "what": "a", "learn": False}]
    write_rows(tmp_path / "rows.jsonl", [{"talk": [turns[1], turns[2], turns[1], {"who": "bot", "what": "b"}]}] * 10)
    entry = {
        "path": "rows.jsonl", "type": "chat_template", "field_messages": "talk", "split": "train[:20%]",
        "message_property_mappings": {"role": "who", "content": "what"}, "message_field_training": "learn",
        "roles": {"user": ["person"], "assistant": ["bot"]}, "roles_to_train": ["assistant"],
    }  # fmt: skip
    imported = run(tmp_path, AXOLOTL | {"datasets": [entry]})
    examples = [row.example for row in load_examples(recipe_of(imported).data).examples]
    assert len(examples) == 2
    assert [turn.trained for turn in examples[0].messages] == [False, False, False, True]


def test_dpo_becomes_the_method_and_other_losses_on_pairs_are_said_not_to_be_trainable(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"question": "q", "chosen": "good", "rejected": "bad", "system": "s"}] * 3)
    config = AXOLOTL | {"rl_beta": 0.3, "datasets": [{"path": "rows.jsonl", "type": "chatml.intel"}]}
    imported = run(tmp_path, config | {"rl": "dpo"})
    example = load_examples(imported.values["data"]).examples[0].example
    assert example.kind == "preference" and imported.trainable
    assert (recipe_of(imported).method, recipe_of(imported).beta) == ("dpo", 0.3)
    for changes in ({"rl": "ipo"}, {"rl": "dpo", "load_in_4bit": True}):
        imported = run(tmp_path, config | changes, force=True)
        assert recipe_of(imported).method != "dpo" and not imported.trainable
        assert [one.key for one in imported.no_equal if one.key == "rl"]


def test_data_that_is_not_here_leaves_a_draft_that_names_it(tmp_path: Path) -> None:
    config = AXOLOTL | {"datasets": [{"path": "org/hub-set", "type": "alpaca"}]}
    imported = run(tmp_path, config)
    assert imported.missing == ["org/hub-set"] and not (tmp_path / "out" / "data.jsonl").exists()
    assert recipe_of(imported).warmup_steps == "auto"  # a share of the steps, which cannot be counted
    write_rows(tmp_path / "fetched.jsonl", ALPACA)
    again = run(tmp_path, config, given={"org/hub-set": tmp_path / "fetched.jsonl"}, force=True)
    assert not again.missing and len(load_examples(again.values["data"]).examples) == 40
    with pytest.raises(InputError, match="no data set typo"):
        run(tmp_path, config, given={"typo": tmp_path / "fetched.jsonl"}, force=True)


def test_rows_that_do_not_fit_their_description_are_refused_with_their_lines(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "rows.jsonl", [ALPACA[0], {"instruction": "x"}, ALPACA[1], {"instruction": "y", "output": ""}]
    )
    with pytest.raises(DataError) as caught:
        run(tmp_path, AXOLOTL)
    assert [problem.line for problem in caught.value.problems] == [2, 4]
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_no_json_is_refused_with_its_place_and_packed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ALPACA[0]) + '\n{"instruction": \n[1]\n')
    with pytest.raises(DataError) as caught:
        run(tmp_path, AXOLOTL)
    assert [problem.line for problem in caught.value.problems] == [2, 3]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ALPACA))
    assert run(tmp_path, AXOLOTL | {"datasets": [{"path": "rows.jsonl.gz", "type": "alpaca"}]}).rows[0].total == 40


def test_full_training_and_four_bits_become_methods(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ALPACA)
    full = run(tmp_path, {key: value for key, value in AXOLOTL.items() if key != "adapter"})
    assert recipe_of(full).method == "full" and recipe_of(full).rank == "auto"
    four = run(tmp_path, AXOLOTL | {"load_in_4bit": True}, force=True)
    assert recipe_of(four).method == "qlora"


def test_a_config_of_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no config of a trainer"):
        run(tmp_path, {"model": "x"})


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3000), st.floats(-1, 5), st.text(max_size=8),
    st.lists(st.text(max_size=5), max_size=2), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip


INNER = (
    "type", "split", "data_files", "roles", "roles_to_train", "message_property_mappings", "field_messages", "columns",
    "tags", "formatting", "ranking", "num_samples", "file_name", "hf_hub_url", "train_on_eos", "drop_system_message",
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([AXOLOTL, LLAMAFACTORY]),
    st.dictionaries(
        st.sampled_from([*AXOLOTL, *LLAMAFACTORY, "rl", "max_steps", "max_samples", "x"]), VALUES, max_size=8
    ),
    st.dictionaries(st.sampled_from(INNER), VALUES, max_size=6),
)
def test_every_key_ends_in_exactly_one_list_whatever_its_value(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], changes: dict[str, Any], inner: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("import")
    (folder / "data").mkdir()
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"talks": inner}))
    entry = {"path": "hub/x", "type": "chat_template", "odd": 1, **inner}
    base = {"datasets": [entry]} if "datasets" in config else {}
    changed = {**config, **base, **changes}
    try:
        imported = run(folder, changed)
    except InputError:
        return  # nothing was written
    keys = keys_of(imported)
    assert len(keys) == len(set(keys))
    assert {key for key in changed if key != "datasets"} <= set(keys)
    assert "datasets" in keys or "datasets[0].odd" in keys or "datasets" not in changed
    recipe_of(imported)
