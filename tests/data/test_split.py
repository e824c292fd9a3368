"""A split never parts a question, gives every label its share, and depends on content and seed alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tunesmith.chat import Example, Message
from tunesmith.cli.split import split as split_command
from tunesmith.data.checks.near import clusters
from tunesmith.data.load import load_examples
from tunesmith.data.split import group_key, split, split_parts
from tunesmith.errors import DataError, InputError


def example(prompt: str, answer: str = "yes") -> Example:
    return Example((Message("user", prompt), Message("assistant", answer, trained=True)))


PROMPTS = st.sampled_from(
    ["Hi", "hi!", " HI ", "Lost card", "lost  card?", "Sign in", "C", "C++", "\u0915\u093f", "\u0915\u093e", "?!"]
)
EXAMPLES = st.lists(st.builds(example, PROMPTS, st.sampled_from(["a", "b", "c"])), min_size=2, max_size=40)


@settings(max_examples=150, deadline=None)
@given(examples=EXAMPLES, seed=st.integers(0, 5), fraction=st.floats(0.01, 0.99), data=st.data())
def test_no_group_is_split_and_both_sides_have_rows(
    examples: list[Example], seed: int, fraction: float, data: st.DataObject
) -> None:
    keys = [group_key(row) for row in examples]
    if len(set(keys)) < 2:
        with pytest.raises(InputError, match="too few"):
            split(examples, fraction=fraction, seed=seed)
        return
    train, held = split(examples, fraction=fraction, seed=seed)
    assert sorted(train + held) == list(range(len(examples)))
    assert train
    assert held
    assert not {keys[index] for index in train} & {keys[index] for index in held}
    order = data.draw(st.permutations(range(len(examples))))
    again = split([examples[index] for index in order], fraction=fraction, seed=seed)[1]
    assert sorted(order[index] for index in again) == held


def test_spelling_case_and_punctuation_make_no_new_question_but_letters_do() -> None:
    assert group_key(example("Lost  card?")) == group_key(example("lost card"))
    assert group_key(example("\u0915\u093f")) != group_key(example("\u0915\u093e"))
    assert group_key(example("?!")) != group_key(example("..."))


def test_each_label_gives_its_share_and_a_lone_label_stays_in_train() -> None:
    sizes = {"a": 60, "b": 30, "rare": 1}
    rows = [example(f"{label} {number}", label) for label, size in sizes.items() for number in range(size)]
    held = split(rows, fraction=0.1)[1]
    assert Counter(rows[index].answer for index in held) == {"a": 6, "b": 3}


def test_a_count_is_met_exactly_when_every_question_is_different() -> None:
    rows = [example(f"question {n}", f"answer {n}") for n in range(50)]
    assert len(split(rows, count=7)[1]) == 7
    assert len(split(rows, count=49)[1]) == 49
    assert split(rows, count=7, seed=1) != split(rows, count=7)


@pytest.mark.parametrize(
    "share", [{"fraction": 0.0}, {"fraction": 1.0}, {"count": 0}, {"count": 3}, {"fraction": float("nan")}]
)
def test_a_share_that_makes_no_sense_is_refused(share: dict[str, float]) -> None:
    with pytest.raises(InputError, match="cannot hold out"):
        split([example("a"), example("b"), example("c")], **share)  # type: ignore[arg-type]


TYPOS = st.sampled_from(
    ["Where is my new card?", "hi, where is my new card", "Where is my nwe card", "I forgot the passcode", "refund me"]
)


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(TYPOS | PROMPTS, min_size=3, max_size=30),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_three_parts_share_no_cluster_and_do_not_depend_on_the_order(
    prompts: list[str], sizes: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    examples = [example(prompt) for prompt in prompts]
    found = clusters(sorted(prompts))
    if len(found) < 3 or sum(sizes) >= len(prompts):
        with pytest.raises(InputError):
            split_parts(examples, sizes, seed=seed)
        return
    parts = split_parts(examples, sizes, seed=seed)
    assert sorted(row for part in parts for row in part) == list(range(len(prompts)))
    assert all(parts)
    cluster_of = {sorted(prompts)[index]: number for number, members in enumerate(found) for index in members}
    homes = [{cluster_of[prompts[row]] for row in part} for part in parts]
    assert sum(map(len, homes)) == len(set().union(*homes))
    order = data.draw(st.permutations(range(len(prompts))))
    again = split_parts([examples[index] for index in order], sizes, seed=seed)
    assert [sorted(order[row] for row in part) for part in again] == parts


def test_rows_with_one_value_of_a_field_stay_together_and_every_row_must_have_it() -> None:
    rows = [
        Example(example(f"question {number} {number * 37}").messages, metadata={"customer": number % 7})
        for number in range(70)
    ]
    train, held = split(rows, fraction=0.2, group_by="customer")
    assert (len(train), len(held)) == (60, 10)
    assert len({rows[row].metadata["customer"] for row in held}) == 1
    with pytest.raises(InputError, match="'shop'.*rows 1, 2, 3, 4, 5, \\.\\.\\."):
        split(rows, group_by="shop")


def app() -> typer.Typer:
    application = typer.Typer()
    application.command()(split_command)
    return application


def write_questions(tmp_path: Path) -> Path:
    path = tmp_path / "faq.jsonl"
    rows = [json.dumps({"prompt": f"Frage {n} \u00fc", "completion": f"Antwort {n}"}) for n in range(20)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_the_command_writes_both_files_once(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    result = CliRunner().invoke(app(), [str(path), "--json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["train"] == {"path": str(tmp_path / "faq.train.jsonl"), "rows": 18}
    parts = [load_examples(document[part]["path"]).examples for part in ("train", "test")]
    whole = {row.example.id for row in load_examples(path).examples}
    assert {row.example.id for part in parts for row in part} == whole
    again = CliRunner().invoke(app(), [str(path)])
    assert isinstance(again.exception, InputError)
    assert "exist already" in str(again.exception)
    assert CliRunner().invoke(app(), [str(path), "--force", "--count", "5"]).exit_code == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["faq.jsonl", "faq.test.jsonl", "faq.train.jsonl"]


def test_the_command_writes_a_validation_file_on_request(tmp_path: Path) -> None:
    path = write_questions(tmp_path)
    result = CliRunner().invoke(app(), [str(path), "--json", "--fraction", "0.2", "--validation", "3"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [document[part]["rows"] for part in ("train", "test", "validation")] == [13, 4, 3]
    assert len(load_examples(tmp_path / "faq.validation.jsonl").examples) == 3
    whole = CliRunner().invoke(app(), [str(path), "--count", "17", "--validation", "3", "--force"])
    assert isinstance(whole.exception, InputError)


def test_a_bad_file_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    result = CliRunner().invoke(app(), [str(path)])
    assert isinstance(result.exception, DataError)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.jsonl"]
