"""Order, batches and micro-batches: a function of the seed alone, every row once an epoch, nothing cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.train.conftest import write_rows
from tunesmith.adapter import attach_lora
from tunesmith.chat import Example, Message, parse_row
from tunesmith.data.load import load_examples
from tunesmith.errors import InputError, RunError
from tunesmith.model import Base
from tunesmith.nll import label_nll_N
from tunesmith.recipe import Recipe
from tunesmith.render import Rendered
from tunesmith.train.loop import mean_loss
from tunesmith.train.objective import Likelihood
from tunesmith.train.rows import (
    Drop,
    Row,
    batches,
    drops_in_words,
    label_weight,
    loud_drops,
    micro_batches,
    render_rows,
    rows_sha256,
)
from tunesmith.trie import lay_out
from tunesmith.worker import prepare


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(i, Rendered((5,) * n, (False,) + (True,) * (n - 1)), 1.0) for i, n in enumerate(lengths)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=40), st.integers(0, 3), st.integers(0, 3), st.integers(1, 9))
def test_an_epoch_holds_every_row_once_in_an_order_of_seed_and_epoch(
    lengths: list[int], seed: int, epoch: int, size: int
) -> None:
    rows = rows_of(lengths)
    made = batches(rows, seed=seed, epoch=epoch, batch_size=size)
    assert made == batches(rows, seed=seed, epoch=epoch, batch_size=size)
    assert sorted(row.index for batch in made for row in batch) == list(range(len(rows)))
    assert all(len(batch) == size for batch in made[:-1])


def test_another_epoch_or_seed_gives_another_order() -> None:
    rows = rows_of([3] * 30)
    orders = {
        (s, e): [r.index for r in batches(rows, seed=s, epoch=e, batch_size=30)[0]] for s in (0, 1) for e in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_micro_batches_keep_the_order_and_the_limit(lengths: list[int], limit: int) -> None:
    rows = rows_of(lengths)
    pieces = list(micro_batches(rows, limit))
    assert [row for piece in pieces for row in piece] == rows
    assert all(len(piece) == 1 or sum(row.num_tokens for row in piece) <= limit for piece in pieces)


def test_a_row_that_does_not_fit_is_dropped_whole_with_its_length(tiny: Base, tiny_rows: Any) -> None:
    examples = [example for row in tiny_rows(3) if (example := parse_row(row)[0])]
    examples.insert(1, Example((Message("user", "x" * 300), Message("assistant", "y", trained=True))))
    rows, drops = render_rows(examples, tiny.renderer, max_length=250)
    assert [row.index for row in rows] == [0, 2, 3]
    length = len(tiny.renderer.render(examples[1]).ids)
    assert drops == [Drop(1, "too long", f"{length} tokens do not fit the longest row of 250")]
    assert all(row.rendered == tiny.renderer.render(examples[row.index]) for row in rows)  # nothing is cut


def answer(text: str, *, weight: float = 1.0, question: str = "Why?", trained: bool = True) -> Example:
    return Example((Message("user", question), Message("assistant", text, trained=trained)), weight)


def test_what_cannot_train_is_dropped_with_its_kind_of_reason(tiny: Base) -> None:
    examples = [answer("a"), answer("b", weight=1e-42), answer("c", weight=1e300), answer("d", trained=False)]
    rows, drops = render_rows(examples, tiny.renderer, max_length=250)
    assert [row.index for row in rows] == [0]
    assert [(drop.index, drop.kind) for drop in drops] == [
        (1, "of unusable weight"),
        (2, "of unusable weight"),
        (3, "without anything to train"),
    ]
    assert drops_in_words(drops, 4) == ("3 of 4 rows are dropped: 2 of unusable weight, 1 without anything to train")


def test_no_batch_is_without_a_trained_token(tiny: Base) -> None:
    examples = [answer("x", trained=False), answer("y", weight=1e-44), answer("z", weight=2e-38)] * 5
    rows, _ = render_rows(examples, tiny.renderer, max_length=250)
    for batch in batches(rows, seed=0, epoch=0, batch_size=1):
        assert lay_out([row.rendered for row in batch], [row.weight for row in batch]).weights_N.sum() > 0


def test_many_drops_and_lost_answers_are_said_loudly_and_odd_ones_are_not() -> None:
    examples = [answer(label) for label in ("card", "login", "refund", "other") for _ in range(10)]
    assert not loud_drops([], examples)
    assert not loud_drops([Drop(i, "too long", "") for i in (0, 10, 20)], examples)
    (many,) = loud_drops([Drop(i, "too long", "") for i in (0, 1, 10, 11, 20)], examples)
    assert many == "5 of 40 rows are dropped: 5 too long. That is 12% of the data."
    texts = [*examples[:1], *(answer(label) for label in ("card", "login", "refund") * 30)]
    lost = [Drop(i, "too long", "") for i, example in enumerate([*texts, answer("rare"), answer("rare")]) if i > 90]
    (warning,) = loud_drops(lost, [*texts, answer("rare"), answer("rare")])
    assert warning == "Every row with the answer 'rare' is dropped: the model will not learn it."


# -- a renderer gone wrong: what a second look must see -----------------------------------------------------------


def shifted(rendered: Rendered) -> Rendered:
    return Rendered(rendered.ids, (*rendered.trained[1:], False))


def all_trained(rendered: Rendered) -> Rendered:
    return Rendered(rendered.ids, (True,) * len(rendered.ids))


def without_its_end(rendered: Rendered) -> Rendered:
    return Rendered(rendered.ids[:-1], rendered.trained[:-1])


def with_a_second_bos(rendered: Rendered) -> Rendered:
    return Rendered((1, *rendered.ids), (False, *rendered.trained))


def cut_in_front(rendered: Rendered) -> Rendered:
    first = rendered.trained.index(True)
    return Rendered(rendered.ids, (*rendered.trained[:first], False, *rendered.trained[first + 1 :]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (shifted, "does not end in a stop token"),
        (without_its_end, "does not end in a stop token"),
        (all_trained, "what is trained reads 'system"),
        (cut_in_front, "what is trained reads 'ard', the answer 'card'"),
        (with_a_second_bos, "begins with two begin-of-sequence tokens"),
    ],
)
def test_a_row_that_is_not_rendered_truthfully_stops_the_run_with_its_line(
    wrong: Callable[[Rendered], Rendered], words: str, tiny: Base, monkeypatch: Any
) -> None:
    real = tiny.renderer.render
    monkeypatch.setattr(tiny.renderer, "render", lambda example: wrong(real(example)))
    with pytest.raises(RunError, match=rf"Line 7 is not rendered truthfully: .*{words}"):
        render_rows([answer("card")], tiny.renderer, max_length=250, lines=[7])


def test_every_answer_of_a_conversation_must_end_in_a_stop_token(tiny: Base, monkeypatch: Any) -> None:
    turns = [
        Message("user", "a"),
        Message("assistant", "b", True),
        Message("user", "c"),
        Message("assistant", "d", True),
    ]
    real = tiny.renderer.render

    def first_end_untrained(example: Example) -> Rendered:
        rendered = real(example)
        end = rendered.ids.index(2, rendered.trained.index(True))
        return Rendered(rendered.ids, (*rendered.trained[:end], False, *rendered.trained[end + 1 :]))

    assert len(render_rows([Example(tuple(turns))], tiny.renderer, max_length=250)[0]) == 1
    monkeypatch.setattr(tiny.renderer, "render", first_end_untrained)
    with pytest.raises(RunError, match="does not end in a stop token"):
        render_rows([Example(tuple(turns))], tiny.renderer, max_length=250)


def test_the_hash_of_a_batch_tells_its_rows_and_their_order() -> None:
    rows = rows_of([3] * 4)
    hashes = {rows_sha256(batch) for batch in (rows, rows[::-1], rows[:2], rows[1:3])}
    assert len(hashes) == 4
    assert rows_sha256(rows) == rows_sha256(list(rows))


def test_micro_batches_of_any_size_give_the_same_loss_and_gradients(tiny: Base, tiny_file: Path) -> None:
    examples = [row.example for row in load_examples(tiny_file).examples][:12]
    weighted = [Example(e.messages, weight) for e, weight in zip(examples, (1.0, 2.0, 0.5) * 4, strict=True)]
    rows, _ = render_rows(weighted, tiny.renderer, max_length=512)
    torch.manual_seed(0)
    model = attach_lora(tiny, rank=4, alpha=8.0, dropout=0.0, targets="all-linear")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    measured = []
    for limit in (64, 400, 1000, 100_000):
        model.zero_grad(set_to_none=True)
        total = 0.0
        for piece in micro_batches(rows, limit):
            trie = lay_out([row.rendered for row in piece], [row.weight for row in piece])
            loss = (label_nll_N(model, trie) * trie.weights_N).sum() / label_weight(rows)
            loss.backward()
            total += loss.item()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        measured.append((total, gradient))
        found = mean_loss(model, rows, objective=Likelihood(), micro_batch_tokens=limit, share=True)
        assert found.loss == pytest.approx(total, rel=1e-6) and list(found.figures) == ["token_accuracy"]
    for total, gradient in measured[1:]:
        assert total == pytest.approx(measured[0][0], rel=1e-6)
        assert (gradient - measured[0][1]).norm() <= 1e-6 * measured[0][1].norm() + 1e-7


GOOD = st.tuples(st.just("good"), st.integers(0, 10_000))
LINES = st.lists(
    st.one_of(
        GOOD,
        GOOD,
        st.tuples(st.just("long"), st.integers(200, 400)),
        st.tuples(st.just("light"), st.integers(38, 320)),
        st.tuples(st.just("blank"), st.integers(0, 3)),
    ),
    min_size=8,
    max_size=40,
)


def line_of(kind: str, number: int) -> str:
    if kind == "blank":
        return " " * number
    row: dict[str, Any] = {"prompt": f"Question {number}?", "completion": f"answer {number % 3}"}
    if kind == "long":
        row["prompt"] = "x" * number
    if kind == "light":
        row["weight"] = float(f"1e-{number}")
    return json.dumps(row)


@pytest.mark.parametrize("cases", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_line_of_any_file_is_trained_held_out_or_dropped_with_its_reason(
    cases: int, small_recipe: Callable[..., Recipe], tiny: Base, tmp_path: Path
) -> None:
    """The law of truth: rows in = trained + held out + dropped; the loop trains those that the ledger names."""
    numbers = itertools.count()

    @settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck))
    @given(LINES, st.booleans())
    def check(kinds: list[tuple[str, int]], own_validation: bool) -> None:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        data = folder / "data.jsonl"
        data.write_text("".join(line_of(*kind) + "\n" for kind in kinds))
        held = None if own_validation else str(write_rows(folder / "held.jsonl", [{"prompt": "a", "completion": "b"}]))
        recipe = small_recipe(data=str(data), validation=held, max_length=200, validation_fraction=0.3, batch_size=4)
        try:
            job = prepare(recipe, folder / "run", say=lambda text: None, base=tiny)
        except InputError as error:
            only_blank = all(kind == "blank" for kind, _ in kinds)
            assert only_blank or "row" in str(error)  # no row is left for training or for watching
            assert not (folder / "run").exists()
            return
        by_status: dict[str, list[int]] = {"trained": [], "held_out": [], "dropped": []}
        for row in job.ledger:
            by_status[row.status].append(row.line)
            assert row.reason or row.status == "trained"
        assert sorted(sum(by_status.values(), [])) == list(range(1, len(kinds) + 1))
        assert by_status["trained"] == [row.line for row in job.plan.rows]
        assert len(by_status["held_out"]) == (len(job.plan.validation) if own_validation else 0)
        lost = [
            line
            for line, (kind, number) in enumerate(kinds, 1)
            if kind in ("long", "blank") or number > 37 and kind == "light"
        ]
        assert by_status["dropped"] == lost
        trained = [row.line for batch in batches(job.plan.rows, seed=0, epoch=0, batch_size=4) for row in batch]
        assert sorted(trained) == by_status["trained"]

    check()


def test_the_ledger_of_a_run_adds_up_to_the_lines_of_its_file(
    small_recipe: Callable[..., Recipe], tiny_rows: Any, tmp_path: Path
) -> None:
    rows = tiny_rows(40)
    rows[7]["messages"][1]["content"] = "long " * 120
    path = write_rows(tmp_path / "mixed.jsonl", rows)
    path.write_text(path.read_text().replace("\n", "\n\n", 2))  # two blank lines
    job = prepare(small_recipe(data=str(path)), tmp_path / "run", say=lambda text: None)
    statuses = [row.status for row in job.ledger]
    assert [row.line for row in job.ledger] == list(range(1, 43))
    assert statuses.count("trained") == len(job.plan.rows)
    assert statuses.count("held_out") == len(job.plan.validation)
    dropped = {row.line: row.reason for row in job.ledger if row.status == "dropped"}
    assert dropped[2] == dropped[4] == "blank line"
    assert "tokens do not fit the longest row of 512" in dropped[10]
    assert len(dropped) == 3
    lines = (job.run.directory / "ledger.jsonl").read_text().splitlines()
    assert len(lines) == 42


def test_rows_for_another_method_are_refused_by_name_and_not_half_used(tiny: Base) -> None:
    ask, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("assistant", "c"))
    )
    for row, method in (
        ({"prompt": [ask], "chosen": [good], "rejected": [bad]}, "dpo"),
        ({"prompt": [ask], "reference": "b"}, "grpo"),
    ):
        example, _ = parse_row(row)
        assert example
        with pytest.raises(InputError, match=f"Line 7 .* for the method {method}"):
            render_rows([answer("a"), example], tiny.renderer, max_length=250, lines=[3, 7])


def test_a_plain_text_is_a_row_of_its_own(tiny: Base) -> None:
    example, _ = parse_row({"text": "Once upon a time"})
    assert example
    rows, drops = render_rows([example], tiny.renderer, max_length=250)
    assert (len(rows), drops) == (1, [])
    assert all(rows[0].rendered.trained)
