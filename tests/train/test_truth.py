"""Faults of data, template, base, settings and machine are put in, one at a time: each stops the run with its reason.

docs/checks.md is the table of these checks. The other half: none of the good configurations is stopped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import CHATML, FAMILIES
from tests.train.conftest import adapter_bytes, losses, write_rows
from tunesmith import trie
from tunesmith.adapter import adapter_folder
from tunesmith.cli.output import Output
from tunesmith.cli.train import _say_plan
from tunesmith.errors import DataError, InputError, ModelError, RunError, TunesmithError
from tunesmith.model import Base
from tunesmith.recipe import Recipe
from tunesmith.render import RenderError
from tunesmith.runs import Run
from tunesmith.train import checkpoint
from tunesmith.train.loop import DIVERGED_STEPS, Interrupted
from tunesmith.worker import Job, execute, prepare

MakeRecipe = Callable[..., Recipe]
QUIET: dict[str, Any] = {"watch": lambda metric: None, "say": lambda text: None}


@dataclass
class Scene:
    """What a fault may spoil: the recipe's changes, a data file, a copy of the base, what the loop sees."""

    folder: Path
    changes: dict[str, Any]
    rows: list[dict[str, Any]]
    monkeypatch: Any
    watch: Callable[[Any], None] = QUIET["watch"]
    between: Callable[[Job], None] = lambda job: None  # after the plan, before training

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def template(self, text: str) -> None:
        (self.base / "chat_template.jinja").write_text(text)

    def tokenizer_with(self, token: str) -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.base)
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
        tokenizer.chat_template = CHATML.replace("<|im_start|>", token)
        tokenizer.save_pretrained(self.base)
        return tokenizer

    def weights(self, change: Callable[[Any], None]) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.base)
        with torch.no_grad():
            change(model)
        model.save_pretrained(self.base)


@pytest.fixture
def scene(tmp_path: Path, tiny_base: Path, tiny_rows: Any, monkeypatch: Any) -> Scene:
    shutil.copytree(tiny_base, tmp_path / "base")
    return Scene(tmp_path, {"base": str(tmp_path / "base")}, tiny_rows(24), monkeypatch)


# -- the faults -------------------------------------------------------------------------------------------------


def rewrites_answers(scene: Scene) -> None:
    scene.template(CHATML.replace("message['content'] +", "message['content'] | upper +"))


def forgets_the_prompt(scene: Scene) -> None:
    scene.template(CHATML.replace("for message in messages", "for message in messages[-1:]"))


def writes_no_end_of_turn(scene: Scene) -> None:
    scene.template(CHATML.replace("'<|im_end|>' + ", ""))


def writes_two_bos(scene: Scene) -> None:
    scene.template("{{ bos_token }}" + CHATML)


def token_beyond_the_embeddings(scene: Scene) -> None:
    scene.tokenizer_with("<|turn|>")


def token_never_trained(scene: Scene) -> None:
    tokenizer = scene.tokenizer_with("<|turn|>")
    scene.weights(lambda model: model.resize_token_embeddings(len(tokenizer)))


def every_row_too_long(scene: Scene) -> None:
    scene.changes["max_length"] = 60


def no_validation_row_fits(scene: Scene) -> None:
    long = {"prompt": "x" * 600, "completion": "y"}
    scene.changes["validation"] = str(write_rows(scene.folder / "held.jsonl", [long]))


def broken_validation_file(scene: Scene) -> None:
    path = write_rows(scene.folder / "held.jsonl", scene.rows[:2])
    path.write_text(path.read_text() + '{"messages": [}\n')
    scene.changes["validation"] = str(path)


def longer_than_the_context(scene: Scene) -> None:
    scene.changes["max_length"] = 600


def nothing_answered(scene: Scene) -> None:
    scene.rows[3]["messages"][-1]["content"] = " "


def only_questions(scene: Scene) -> None:
    scene.rows[3]["messages"].pop()


def nothing_trained(scene: Scene) -> None:
    scene.rows[3]["messages"][-1]["weight"] = 0


def misspelt_target(scene: Scene) -> None:
    scene.changes["targets"] = ["q_proj", "v_projj"]


def damaged_base(scene: Scene) -> None:
    scene.weights(lambda model: model.model.norm.weight.fill_(float("nan")))


def rows_that_see_each_other(scene: Scene) -> None:
    """Packing without isolation, in the layout that everything uses."""
    real = trie._Nodes.columns

    def columns(nodes: Any) -> Any:
        ids, positions, ends = real(nodes)
        return ids, positions, ends * 0 + len(ids)

    scene.monkeypatch.setattr(trie._Nodes, "columns", columns)


def no_place_for_checkpoints(scene: Scene) -> None:
    scene.between = lambda job: job.run.checkpoints_dir.write_text("")


def huge_learning_rate(scene: Scene) -> None:
    scene.changes["learning_rate"] = 1e30


def output_without_gradient(scene: Scene) -> None:
    """The head sees zeros from step 2 on: the loss stays that of a guess."""

    def spoil(job: Job) -> None:
        scene.watch = lambda metric: job.base.model.model.norm.weight.data.zero_() if metric["step"] == 1 else None

    scene.between = spoil


def no_learning_rate_to_speak_of(scene: Scene) -> None:
    scene.changes["learning_rate"] = 1e-30


def base_changed_meanwhile(scene: Scene) -> None:
    def change(job: Job) -> None:
        scene.weights(lambda model: model.model.norm.weight.mul_(1.5))

    scene.between = change


def adapter_changed_after_training(scene: Scene) -> None:
    from safetensors.torch import load_file, save_file

    from tunesmith.train import run

    real = run.prove

    def prove(training: Run) -> Any:
        path = training.adapter_dir / "adapter_model.safetensors"
        save_file({name: -x if "lora_B" in name else x for name, x in load_file(path).items()}, path)
        return real(training)

    scene.monkeypatch.setattr(run, "prove", prove)


BEFORE, EARLY, DURING, AFTER = "before anything is written", "before step 1", "while training", "before it is used"
FAULTS: list[tuple[Callable[[Scene], None], str, type[TunesmithError], str]] = [
    (rewrites_answers, BEFORE, RenderError, "does not write the answer"),
    (forgets_the_prompt, BEFORE, RenderError, "not prefix-preserving"),
    (writes_no_end_of_turn, BEFORE, RenderError, "with an end-of-turn token after it"),
    (writes_two_bos, BEFORE, RunError, r"Line \d+ is not rendered truthfully: .*two begin-of-sequence tokens"),
    (token_beyond_the_embeddings, BEFORE, ModelError, "writes token 259, but the model has 259 tokens"),
    (token_never_trained, BEFORE, ModelError, "never trained on its token 259"),
    (every_row_too_long, BEFORE, InputError, r"No training row is left: \d+ tokens do not fit"),
    (no_validation_row_fits, BEFORE, InputError, "No validation row is left"),
    (broken_validation_file, BEFORE, DataError, r"held.jsonl:3:\d+: "),
    (longer_than_the_context, BEFORE, InputError, "longer than the base's context"),
    (nothing_answered, BEFORE, DataError, r"data.jsonl:4:\d+: the content of message 3 \(assistant\) is empty"),
    (only_questions, BEFORE, DataError, r"data.jsonl:4.*no assistant turn"),
    (nothing_trained, BEFORE, DataError, r"data.jsonl:4.*nothing would be trained"),
    (misspelt_target, BEFORE, InputError, "v_projj"),
    (damaged_base, EARLY, RunError, "base's own loss on these rows is nan"),
    (rows_that_see_each_other, EARLY, RunError, "do not give what this model gives for each alone"),
    (no_place_for_checkpoints, EARLY, RunError, "step-000000 cannot be written"),
    (huge_learning_rate, DURING, RunError, "lower learning_rate"),
    (output_without_gradient, DURING, RunError, "Step 2: the loss is 5.5568 and its gradient exactly 0."),
    (no_learning_rate_to_speak_of, AFTER, RunError, "adapter changes the model"),
    (base_changed_meanwhile, AFTER, ModelError, "trained on another base: sha256"),
    (adapter_changed_after_training, AFTER, RunError, "validation loss comes out again"),
]


@pytest.mark.usefixtures("proof_here")
@pytest.mark.parametrize(("fault", "stage", "kind", "words"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_fault_stops_the_run_with_its_reason(
    fault: Callable[[Scene], None],
    stage: str,
    kind: type[TunesmithError],
    words: str,
    scene: Scene,
    small_recipe: MakeRecipe,
) -> None:
    fault(scene)
    data = write_rows(scene.folder / "data.jsonl", scene.rows)
    out = scene.folder / "run"
    with pytest.raises(kind, match=words):
        job = prepare(small_recipe(data=str(data), epochs=1, **scene.changes), out, say=QUIET["say"])
        scene.between(job)
        execute(job, watch=scene.watch, say=QUIET["say"])
    assert out.exists() == (stage != BEFORE)
    if stage == BEFORE:
        return
    run = Run(out)
    assert run.status["state"] == "failed"
    assert bool(losses(run)) == (stage != EARLY)
    assert run.adapter_dir.exists() == (stage == AFTER)
    with pytest.raises(InputError, match="failed, not finished"):
        adapter_folder(out)
    if stage == DURING:
        assert checkpoint.newest(run.checkpoints_dir) is not None


def test_rows_that_do_not_fit_are_dropped_whole_and_said_loudly(
    scene: Scene, small_recipe: MakeRecipe, tiny: Base, capsys: Any
) -> None:
    for row in scene.rows[:4]:
        row["messages"][1]["content"] = "long prompt " * 60
    for row in scene.rows[4:8]:
        row["messages"][-1]["content"] = "long answer " * 60
    data = write_rows(scene.folder / "data.jsonl", scene.rows)
    job = prepare(small_recipe(data=str(data)), scene.folder / "run", say=QUIET["say"], base=tiny)
    dropped = {row.line: row.reason for row in job.ledger if row.status == "dropped"}
    assert sorted(dropped) == list(range(1, 9))
    assert all("tokens do not fit the longest row of 512" in reason for reason in dropped.values())
    _say_plan(Output(), job)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "8 of 24 rows are dropped: 8 too long" in said
    assert "Look at this before going on:" in said
    assert "% of the data." in said


@pytest.mark.usefixtures("proof_here")
def test_divergence_stops_the_run_and_keeps_the_best_checkpoint(scene: Scene, small_recipe: MakeRecipe) -> None:
    """What a rate that is too high does is done by hand, so that it happens at one step and not at another."""
    scene.weights(lambda model: model.model.norm.weight.mul_(4))  # sharper, so that it can be very wrong
    recipe, out, broken_at = small_recipe(epochs=20, **scene.changes), scene.folder / "run", 32
    job = prepare(recipe, out, say=QUIET["say"])

    def unlearn(metric: dict[str, Any]) -> None:
        if metric["kind"] == "train" and metric["step"] >= broken_at:
            for name, parameter in job.base.model.named_parameters():
                if "lora_B" in name:
                    parameter.data.mul_(-1 if metric["step"] == broken_at else 1.5)

    with pytest.raises(RunError, match=rf"above twice its recent median since step {broken_at + 1}\.") as caught:
        execute(job, watch=unlearn, say=QUIET["say"])
    run = Run(out)
    assert run.status["state"] == "failed"
    assert len(losses(run)) == broken_at + DIVERGED_STEPS
    validation = {row["step"]: row["loss"] for row in run.metrics() if row["kind"] == "validation"}
    best = min(validation, key=lambda step: validation[step])
    assert best <= broken_at
    assert f"The best checkpoint, step {best}, is kept" in str(caught.value)
    assert (run.checkpoints_dir / f"step-{best:06d}" / "manifest.json").is_file()
    assert checkpoint.newest(run.checkpoints_dir) != run.checkpoints_dir / f"step-{best:06d}"
    with pytest.raises(RunError, match="above twice its recent median"):  # a new start does not forget it
        execute(prepare(recipe, out, say=QUIET["say"]), **QUIET)
    assert len(losses(run)) <= broken_at + DIVERGED_STEPS + 1


@pytest.mark.usefixtures("proof_here")
def test_accumulation_equals_the_large_batch(small_recipe: MakeRecipe, tiny_rows: Any, tmp_path: Path) -> None:
    """Rows of different lengths and weights; the gradient norm is of the whole batch's mean."""
    rows = tiny_rows(30)
    for number, row in enumerate(rows):
        row["messages"][-1]["content"] *= 1 + number % 5
        row["weight"] = (1.0, 3.0, 0.25)[number % 3]
    data = str(write_rows(tmp_path / "data.jsonl", rows))
    found = []
    for tokens in (64, 100_000):
        job = prepare(
            small_recipe(data=data, epochs=1, micro_batch_tokens=tokens), tmp_path / str(tokens), say=QUIET["say"]
        )
        execute(job, **QUIET)
        found.append([(row["loss"], row["grad_norm"]) for row in job.run.metrics() if row["kind"] == "train"])
    one_at_a_time, at_once = (torch.tensor(values) for values in found)
    assert len(at_once) == 2
    assert torch.allclose(one_at_a_time, at_once, rtol=1e-4, atol=0)
    assert torch.allclose(one_at_a_time[0], at_once[0], rtol=1e-5, atol=0)


# -- asked to stop in the middle --------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["in a step", pytest.param("in a validation", marks=pytest.mark.slow)])
def test_a_stop_is_heard_in_the_middle_and_the_run_ends_at_the_same_bits(
    moment: str, scene: Scene, small_recipe: MakeRecipe, train_here: Any, tiny: Base, tmp_path: Path
) -> None:
    """A step or a validation may take minutes, and a scheduler gives 30 s."""
    data = str(write_rows(tmp_path / "data.jsonl", scene.rows))
    changes = {"data": data, "batch_size": 8, "micro_batch_tokens": 64, "validations_per_epoch": 3}
    recipe = small_recipe(**changes, dropout=0.1, epochs=1)
    undisturbed = train_here(recipe, tmp_path / "undisturbed").run
    forwards: list[bool] = []  # of one row each: whether it trained

    def hook(module: Any, args: Any) -> None:
        forwards.append(module.training)
        trained = sum(forwards)
        if trained == 12 if moment == "in a step" else trained == 8 and not module.training:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = tiny.model.get_decoder().register_forward_pre_hook(hook)
    with pytest.raises(Interrupted):
        execute(prepare(recipe, tmp_path / "run", say=QUIET["say"], base=tiny), **QUIET)
    handle.remove()
    assert forwards[-1] == (moment == "in a step")
    assert sum(forwards) == (12 if moment == "in a step" else 8)  # not one micro-batch more
    run = Run(tmp_path / "run")
    assert run.status["state"] == "interrupted"
    newest = checkpoint.newest(run.checkpoints_dir)
    assert newest is not None
    assert newest.name == "step-000001"
    validated = json.loads((newest / "progress.json").read_text())["validated_step"]
    assert validated == (1 if moment == "in a step" else 0)
    train_here(recipe, tmp_path / "run")
    assert losses(run) == losses(undisturbed)
    assert losses(run, "validation") == losses(undisturbed, "validation")
    assert adapter_bytes(run) == adapter_bytes(undisturbed)


@pytest.mark.parametrize("size_kb", [40, pytest.param(180, marks=pytest.mark.slow)])
def test_a_run_on_a_disk_that_fills_up_goes_on_once_there_is_room(
    size_kb: int, small_recipe: MakeRecipe, train_here: Any, tmp_path: Path
) -> None:
    recipe, disk = small_recipe(), tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs none {disk} 2>/dev/null -o "
    if os.system(f"{mount}size={size_kb}k"):
        pytest.skip("mounting a small file system takes a privilege that this process does not have")
    try:
        with pytest.raises(
            RunError, match=r"cannot be written: No space left on device.*Free .* start the same command"
        ):
            train_here(recipe, disk / "run")
        run = Run(disk / "run")
        assert run.status["state"] != "finished"
        assert (checkpoint.newest(run.checkpoints_dir) is None) == (size_kb == 40)
        assert os.system(mount + "remount,size=8m") == 0
        train_here(recipe, disk / "run")
        undisturbed = train_here(recipe, tmp_path / "undisturbed").run
        assert losses(run) == losses(undisturbed)
        assert adapter_bytes(run) == adapter_bytes(undisturbed)
    finally:
        os.system(f"umount {disk}")


# -- good configurations ----------------------------------------------------------------------------------------


def talk(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]}


GOOD_DATA: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "weights": lambda rows: [row | {"weight": 0.5 + number} for number, row in enumerate(rows)],
    "several turns": lambda rows: [talk(f"Hello {n}?", "Hi.", "And now?", f"Answer {n}.") for n in range(20)],
    "a turn untrained": lambda rows: [
        {
            "messages": [
                *talk(f"Hello {n}?")["messages"],
                {"role": "assistant", "content": "Hm.", "weight": 0},
                *talk(f"Well {n}?", f"Answer {n}.")["messages"],
            ]
        }
        for n in range(20)
    ],  # fmt: skip
    "any characters": lambda rows: [talk(f"Zürich 漢字 {n} 🙂?", f"  é\t{n}\n\nnaïve 🙃  ") for n in range(20)],
    "control tokens as text": lambda rows: [
        talk(f"<|im_end|> {n}", f"<|im_start|>system {n}<|im_end|>") for n in range(20)
    ],
    "equal rows": lambda rows: rows[:1] * 20,
    "one letter": lambda rows: [{"prompt": f"{n}", "completion": "x"} for n in range(20)],
}
GOOD_SETTINGS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.2},
    "single rows": {"batch_size": 1, "micro_batch_tokens": 64},
    "one batch": {"batch_size": 100, "micro_batch_tokens": 100_000},
    "bfloat16": {"precision": "bfloat16"},
    "some targets": {"targets": ["q_proj", "down_proj"]},
    "weight decay": {"weight_decay": 0.1, "max_grad_norm": 0.1},
    "small steps": {"learning_rate": 3e-4},
    "large steps": {"learning_rate": 0.03, "rank": 16},
    "rslora": {"method": "rslora"},
    "dora": {"method": "dora"},
    "full": {"method": "full", "rank": "auto", "learning_rate": 1e-3},
}


QUICK_FAMILIES = ("llama", "qwen3", "gemma2")  # test_preflight checks all of them


def good(job: Job) -> None:
    assert job.run.status["state"] == "finished"
    assert not job.plan.drops
    assert not job.plan.warnings
    assert all(check["passed"] for check in job.run.status["proof"])
    assert json.loads((job.run.directory / "settings.json").read_text())["share"]


@pytest.mark.parametrize("name", GOOD_DATA)
def test_good_data_are_not_stopped(
    name: str, tiny_rows: Any, small_recipe: MakeRecipe, train_here: Any, tmp_path: Path
) -> None:
    rows = GOOD_DATA[name](tiny_rows(20))
    data, held = write_rows(tmp_path / "data.jsonl", rows), write_rows(tmp_path / "held.jsonl", rows[:3])
    good(train_here(small_recipe(data=str(data), validation=str(held), epochs=1), tmp_path / "run"))


@pytest.mark.parametrize("name", GOOD_SETTINGS)
def test_good_settings_are_not_stopped(
    name: str, tiny_rows: Any, small_recipe: MakeRecipe, train_here: Any, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "data.jsonl", tiny_rows(20))
    good(train_here(small_recipe(data=str(data), **({"epochs": 1} | GOOD_SETTINGS[name])), tmp_path / "run"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_FAMILIES else pytest.mark.slow) for name in FAMILIES]
)
def test_good_bases_are_not_stopped(
    name: str, tiny_family: Any, tiny_rows: Any, small_recipe: MakeRecipe, train_here: Any, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "data.jsonl", tiny_rows(20))
    good(train_here(small_recipe(data=str(data), base=str(tiny_family(name)), epochs=1), tmp_path / "run"))


def test_every_test_that_the_table_of_checks_names_is_there() -> None:
    root = Path(__file__).parents[2]
    table = (root / "docs" / "checks.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+)::(\w+)`", table)
    assert len(named) == table.count("| `") > 40
    for file, name in named:
        folder, _, stem = file.rpartition("/")
        text = (root / "tests" / folder / f"test_{stem}.py").read_text(encoding="utf-8")
        assert f"def test_{name}(" in text, f"{file}::{name}"
    modules = {
        path for cell in re.findall(r"\| [^|]*?, ((?:`[a-z/_]+\.py`(?:, )?)+) \|", table) for path in cell.split(", ")
    }
    assert len(modules) > 8
    assert all((root / "src" / "tunesmith" / path.strip("`")).is_file() for path in modules)
