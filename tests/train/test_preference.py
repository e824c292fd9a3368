"""Preference training: its loss and gradients against the formula written plainly, and everything that may go wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import CHATML
from tests.test_fused import adapted
from tests.test_trie import gradient
from tests.train.conftest import adapter_bytes, losses, write_rows
from tests.train.test_run import stop_at
from tunesmith.chat import Example, parse_row
from tunesmith.data.read.formats import parse
from tunesmith.errors import DataError, InputError, RunError
from tunesmith.model import Base, load_base
from tunesmith.nll import label_nll_N
from tunesmith.recipe import Recipe, recipe_from
from tunesmith.render import Rendered
from tunesmith.runs import Run
from tunesmith.train.loop import Interrupted, mean_loss
from tunesmith.train.objective import Preference
from tunesmith.train.outcome import warnings_of
from tunesmith.train.pairs import _unfit, apart, render_pairs
from tunesmith.train.reference import REFERENCE_FILE, with_cached_reference, with_reference
from tunesmith.train.rows import Row, lay_out_rows, micro_batches, render_rows
from tunesmith.worker import Job, prepare

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Job]
IDS = st.integers(3, 258)
ANSWER = st.lists(IDS, min_size=1, max_size=12)
BETA = 0.3


def make_pairs(n: int) -> list[dict[str, Any]]:
    """Polite answers are preferred to short ones; every second row in OpenAI's form, the others in TRL's."""
    rows: list[dict[str, Any]] = []
    for index in range(n):
        ask = {"role": "user", "content": f"My card {index} is lost."}
        good, bad = ({"role": "assistant", "content": text} for text in (f"Sorry, card {index}!", f"No {index}."))
        if index % 2:
            rows.append({"input": {"messages": [ask]}, "preferred_output": [good], "non_preferred_output": [bad]})
        else:
            rows.append({"prompt": [ask], "chosen": [good], "rejected": [bad]})
    return rows


@pytest.fixture
def dpo_recipe(small_recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    data = write_rows(tmp_path / "pairs.jsonl", make_pairs(30))

    def make(**changes: Any) -> Recipe:
        return small_recipe(**{"data": str(data), "method": "dpo", "batch_size": 8} | changes)

    return make


# -- the loss -----------------------------------------------------------------------------------------------------


@st.composite
def pairs(draw: st.DrawFn) -> list[Row]:
    """Pairs whose prompts may begin alike and whose answers may, too; prompt, answers, weight and reference drawn."""
    start = draw(st.lists(IDS, min_size=1, max_size=20))
    rows = []
    for index in range(draw(st.integers(1, 4))):
        prompt = [*start[: draw(st.integers(1, len(start)))], *draw(st.lists(IDS, max_size=8))]
        both = draw(st.lists(IDS, max_size=4))
        answers = [[*both, *draw(ANSWER)] for _ in range(2)]
        chosen, rejected = (
            Rendered((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer)) for answer in answers
        )
        reference = draw(st.tuples(st.floats(-90, -1, width=32), st.floats(-90, -1, width=32)))
        rows.append(Row(index, chosen, draw(st.sampled_from([0.5, 1.0, 2.0])), None, rejected, reference))
    return rows


@cache
def awake(folder: Path) -> Any:
    torch.set_num_threads(1)
    return adapted(folder)


def formula(model: Any, rows: list[Row]) -> tuple[float, torch.Tensor]:
    """DPO as TRL computes it, one conversation at a time by the model's own forward: gather the log-probabilities of
    the answer's tokens, sum them, subtract the reference's, -logsigmoid(beta * difference); the mean over pairs."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for row in rows:
        ratios = []
        for sequence, reference in zip(row.sequences, row.reference or (), strict=True):
            ids_BT = torch.tensor([sequence.ids])
            logits_TV = model(input_ids=ids_BT).logits[0, :-1]
            logp_T = torch.log_softmax(logits_TV, dim=-1).gather(1, ids_BT[0, 1:, None])[:, 0]
            ratios.append((logp_T * torch.tensor(sequence.trained[1:])).sum() - reference)
        chosen_ratio, rejected_ratio = ratios
        loss = -torch.nn.functional.logsigmoid(BETA * (chosen_ratio - rejected_ratio))
        loss = loss * row.weight / sum(one.weight for one in rows)
        loss.backward()
        total += loss.item()
    return total, gradient(model)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "packed"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_loss_and_gradients_over_the_trie_equal_the_plain_formula(
    name: str, share: bool, tiny_family: Callable[[str], Path]
) -> None:
    model = awake(tiny_family(name))
    objective = Preference(BETA)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(pairs(), st.sampled_from([1, 60, 1000]))
    def check(rows: list[Row], micro_batch_tokens: int) -> None:
        expected_loss, expected = formula(model, rows)
        model.zero_grad(set_to_none=True)
        found = 0.0
        for piece in micro_batches(rows, micro_batch_tokens):
            trie = lay_out_rows(piece, share=share)
            loss, _ = objective.sums(piece, trie=trie, nll_N=label_nll_N(model, trie))
            (loss / objective.size(rows)).backward()
            found += loss.item() / objective.size(rows)
        assert found == pytest.approx(expected_loss, rel=1e-5, abs=1e-5)
        assert (gradient(model) - expected).norm() <= 1e-5 * expected.norm() + 1e-6

    check()


def test_the_prompt_of_a_pair_is_laid_out_once(tiny: Base) -> None:
    (row,) = rendered(tiny, make_pairs(1))
    assert row.rejected
    prompt = row.rendered.trained.index(True)
    answers = len(row.rendered.ids) + len(row.rejected.ids) - 2 * prompt
    shared = len(lay_out_rows([row], share=True).ids_T)
    assert shared < prompt + answers <= len(lay_out_rows([row], share=False).ids_T)


def test_figures_are_means_over_pairs_and_ties_are_half() -> None:
    """Margins of 0.3, 0 and -0.6 with the weights 1, 1 and 2; log-probabilities -1 and -2 of one-token answers."""
    answer = Rendered((5, 6), (False, True))
    rows = [
        Row(0, answer, 1.0, None, answer, (-2.0, -2.0)),
        Row(1, answer, 1.0, None, answer, (-1.0, -2.0)),
        Row(2, answer, 2.0, None, answer, (-1.0, -4.0)),
    ]
    trie = lay_out_rows(rows, share=False)
    loss, figures = Preference(BETA).sums(rows, trie=trie, nll_N=torch.tensor([1.0, 2.0] * 3))
    expected = [math.log1p(math.exp(-margin)) for margin in (0.3, 0.0, -0.6)]
    assert loss.item() == pytest.approx(expected[0] + expected[1] + 2 * expected[2])
    assert figures == pytest.approx(
        {"margin": 0.3 - 2 * 0.6, "pair_accuracy": 1.5, "ranking_accuracy": 4, "chosen_change": 1, "rejected_change": 4}
    )
    (first, *_) = Preference(BETA).by_example(rows, owners_N=trie.owners_N, nll_N=torch.tensor([1.0, 2.0] * 3))
    assert first["row"] == 0 and first["loss"] == pytest.approx(expected[0]) and first["chosen_change"] == 1


# -- a whole training ---------------------------------------------------------------------------------------------


def rendered(base: Base, rows: list[dict[str, Any]], **options: Any) -> list[Row]:
    return render_pairs(examples(rows), base.renderer, **{"max_length": 512} | options)[0]


def examples(rows: list[dict[str, Any]]) -> list[Example]:
    found = [parse(row, "preference") for row in rows]
    return [example for example, problems in found if example]


def test_pairs_are_learned_proved_and_their_figures_written(
    dpo_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    job = train_here(dpo_recipe(loss_by_example=True), tmp_path / "run")
    run, metrics = job.run, job.run.status["metrics"]
    assert run.status["state"] == "finished"
    assert [check["passed"] for check in run.status["proof"]] == [True] * 5
    assert run.status["proof"][-1]["check"] == "preferred answers gained on the rejected"
    assert losses(run)[0] == pytest.approx(math.log(2), abs=1e-4)
    validations = [row for row in run.metrics() if row["kind"] == "validation"]
    assert validations[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert validations[0]["pair_accuracy"] == 0.5 and validations[0]["chosen_change"] == pytest.approx(0, abs=1e-4)
    assert metrics["validation_loss"] < math.log(2) and metrics["validation_margin"] > 0
    assert metrics["validation_pair_accuracy"] == 1
    assert metrics["ranking_accuracy_before"] == validations[0]["ranking_accuracy"]
    assert metrics["tokens_computed"] < sum(row["tokens"] for row in run.metrics() if row["kind"] == "train")
    lines = [json.loads(line) for line in (run.directory / "example_losses.jsonl").read_text().splitlines()]
    assert {"row", "loss", "labels", "margin"} <= lines[0].keys()
    first = [line["loss"] for line in lines if line["step"] == 1]
    assert sum(first) / len(first) == pytest.approx(losses(run)[0], rel=1e-5)


def test_a_stopped_run_goes_on_with_the_same_reference_and_ends_at_the_same_bits(
    dpo_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    recipe = dpo_recipe(dropout=0.1)
    straight = train_here(recipe, tmp_path / "straight").run
    with pytest.raises(Interrupted):
        train_here(recipe, tmp_path / "run", stop_at(3))
    run = train_here(recipe, tmp_path / "run").run
    assert adapter_bytes(run) == adapter_bytes(straight)
    assert losses(run) == losses(straight)
    events = [json.loads(line)["event"] for line in (run.directory / "events.jsonl").read_text().splitlines()]
    assert events.count("reference") == 1 and "resumed" in events


def test_a_reference_of_another_model_stops_the_run_before_its_first_step(
    dpo_recipe: MakeRecipe, train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(*args: Any, **options: Any) -> list[Row]:
        found = with_reference(*args, **options)
        swapped = [row.reference for row in found[1:]] + [found[0].reference]  # each pair gets its neighbour's
        return [replace(row, reference=other) for row, other in zip(found, swapped, strict=True)]

    monkeypatch.setattr("tunesmith.train.run.with_reference", shifted)
    with pytest.raises(RunError, match=r"Before the first step the loss is .* and not log 2"):
        train_here(dpo_recipe(), tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_kept_reference_is_used_for_the_very_same_base_and_rows_only(
    dpo_recipe: MakeRecipe, train_here: Train, tiny: Base, tmp_path: Path
) -> None:
    run = train_here(dpo_recipe(), tmp_path / "run").run
    kept = run.read_json(REFERENCE_FILE)
    asked: list[int] = []

    def compute(rows: Any) -> list[Row]:
        asked.append(len(rows))
        return with_reference(tiny.model, rows, micro_batch_tokens=1000, share=True)

    job = prepare(dpo_recipe(), tmp_path / "other", say=lambda text: None)
    parts = (job.plan.rows, job.plan.validation)
    same, _ = with_cached_reference(run, tiny, parts=parts, compute=compute, say=lambda text: None)
    assert not asked and [list(row.reference or ()) for row in same] == kept["log_probabilities"][: len(same)]
    with_cached_reference(run, tiny, parts=(parts[0][::-1], parts[1]), compute=compute, say=lambda text: None)
    assert asked == [len(parts[0]), len(parts[1])]


def test_continuing_from_an_adapter_the_reference_is_that_adapters_start(tiny: Base, tiny_base: Path) -> None:
    """Whatever stands on the base when it is asked is the reference: then the loss is log 2, not with the base's."""
    rows = rendered(tiny, make_pairs(6))
    cut: dict[str, Any] = {"micro_batch_tokens": 1000, "share": True}
    model = awake(tiny_base)
    for reference_of, is_start in ((model, True), (tiny.model, False)):
        referred = with_reference(reference_of, rows, **cut)
        loss = mean_loss(model, referred, objective=Preference(BETA), **cut).loss
        assert (abs(loss - math.log(2)) < 1e-4) == is_start


# -- what may go wrong --------------------------------------------------------------------------------------------


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": "same", "rejected": "same"}, "the same answer is chosen and rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "is empty"),
        ({"prompt": "a", "chosen": "b"}, "'rejected' is"),
        (
            {"chosen": [user("a"), says("b")], "rejected": [user("x"), says("c")]},
            "'chosen' and 'rejected' do not begin with the same turns",
        ),
        (
            {"prompt": [user("a")], "chosen": [user("a"), says("b")], "rejected": [user("x"), says("c")]},
            "is no answer that is compared as a whole",
        ),
        (
            {"input": {"messages": [user("a")]}, "preferred_output": [says("b")], "non_preferred_output": [says("b")]},
            "the same answer is chosen and rejected",
        ),
    ],
    ids=["same", "empty", "missing", "two prompts", "a third prompt", "same, OpenAI"],
)
def test_a_pair_that_says_nothing_is_refused_with_its_line(
    row: dict[str, Any], words: str, dpo_recipe: MakeRecipe, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "bad.jsonl", [*make_pairs(4), row, *make_pairs(4)])
    with pytest.raises(DataError, match=words) as refusal:
        prepare(dpo_recipe(data=str(data)), tmp_path / "run", say=lambda text: None)
    assert "bad.jsonl:5:" in str(refusal.value)


def test_texts_and_lists_of_turns_are_the_same_pair(tiny: Base) -> None:
    texts = {"prompt": "a", "chosen": "b", "rejected": "c"}
    turns = {"chosen": [user("a"), says("b")], "rejected": [user("a"), says("c")]}
    openai = {"input": {"messages": [user("a")]}, "preferred_output": [says("b")], "non_preferred_output": [says("c")]}
    found = rendered(tiny, [texts, turns, openai])
    assert len({(row.rendered, row.rejected) for row in found}) == 1
    for sequence in found[0].sequences:
        assert sequence.trained[-1] and sequence.ids[-1] in tiny.renderer.stop_ids  # the end of turn is trained in both


def test_pairs_that_the_template_makes_alike_or_gives_two_prompts_are_dropped(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    trimming = CHATML.replace("message['content'] +", "message['content'].strip() +")
    (folder / "chat_template.jinja").write_text(trimming)
    base = load_base(str(folder), precision="float32")
    pair = examples([{"prompt": "a", "chosen": "b", "rejected": "b "}])
    assert [drop.kind for drop in render_pairs(pair, base.renderer, max_length=512)[1]] == ["with one answer twice"]

    telling = "{{ 'long' if messages[-1]['content'] | length > 20 and messages[-1]['role'] == 'assistant' else '' }}"
    (folder / "chat_template.jinja").write_text(telling + CHATML)
    base = load_base(str(folder), precision="float32")
    pair = examples([{"prompt": "a", "chosen": "an answer of many characters", "rejected": "no"}])
    rows, drops = render_pairs(pair, base.renderer, max_length=512)
    assert not rows and drops[0].kind == "refused by the template"
    answers = Rendered((5, 6, 7), (False, False, True)), Rendered((5, 8, 7), (False, False, True))
    reason = _unfit(*answers)  # a second look: the renderer proves it of each conversation
    assert reason and reason.kind == "with two prompts"


def test_a_pair_that_does_not_fit_is_dropped_whole(tiny: Base) -> None:
    long = {"prompt": "a", "chosen": "b", "rejected": "c" * 500}
    rows, drops = render_pairs(examples([long, *make_pairs(1)]), tiny.renderer, max_length=300)
    assert [row.index for row in rows] == [1]
    assert drops[0].kind == "too long" and drops[0].reason.startswith("with the rejected answer: ")
    assert [len(one.sequences) for one in apart(rows)] == [1, 1]


def test_each_method_names_the_other_for_its_rows(tiny: Base, tiny_rows: Any) -> None:
    single = [example for row in tiny_rows(2) if (example := parse_row(row)[0])]
    with pytest.raises(InputError, match=r"Line 9 is no pair of answers \(format chat\).*such as lora"):
        render_pairs(single, tiny.renderer, max_length=300, lines=[9, 11])
    with pytest.raises(InputError, match="--set method=dpo"):
        render_rows(examples(make_pairs(1)), tiny.renderer, max_length=300)


def test_preferences_that_hold_for_no_other_pair_are_said_to_teach_nothing(
    dpo_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    turned = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in make_pairs(20) if "chosen" in row
    ]
    held = write_rows(tmp_path / "held.jsonl", turned)
    with pytest.raises(RunError, match="never below log 2, where it began"):
        train_here(dpo_recipe(validation=str(held), epochs=1), tmp_path / "run")
    assert Run(tmp_path / "run").status["state"] == "failed"


def test_beta_belongs_to_its_method() -> None:
    with pytest.raises(InputError, match="beta belongs to the method 'dpo'"):
        recipe_from({"data": "d", "beta": 0.5}, source="r.yaml")
    for beta in (0, 2.5):
        with pytest.raises(InputError, match="'beta' is"):
            recipe_from({"data": "d", "method": "dpo", "beta": beta}, source="r.yaml")


@pytest.mark.parametrize(
    ("chosen", "rejected", "warns"),
    [(-9.0, -10.0, True), (-5.0, -10.0, True), (-3.0, -10.0, False), (1.0, -3.0, False)],
)
def test_preferred_answers_that_fall_with_the_rejected_are_said_with_numbers(
    chosen: float, rejected: float, warns: bool
) -> None:
    warnings = warnings_of({"validation_chosen_change": chosen, "validation_rejected_change": rejected})
    assert bool(warnings) == warns
    assert all(f"{chosen:+.2f} nats" in text and f"{rejected:+.2f}" in text for text in warnings)
    assert warnings_of({"validation_loss": 0.3}) == []
