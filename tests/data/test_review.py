"""Decisions about rows: the log loses none, undo takes back the last, and what is written says where each line went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat import Example, Message
from tunesmith.data.load import load, load_examples
from tunesmith.data.versions.decisions import DecisionLog, decide, is_pending, refuse_pending, state_of
from tunesmith.data.versions.history import add
from tunesmith.data.versions.review import Review, open_review, output_path, write_file, write_version
from tunesmith.errors import InputError

MADE = {"teacher": "big-model", "prompt": "like these"}


def chat(question: str, answer: str, **metadata: Any) -> Example:
    return Example((Message("user", question), Message("assistant", answer, trained=True)), 1.0, metadata)


def write(path: Path, rows: Sequence[Example | None]) -> Path:
    path.write_text("".join((row.to_json() if row else "") + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_USER", "ada")
    rows = [chat("one", "a"), None, chat("two", "b"), chat("three", "c", generated=MADE), chat("two", "b")]
    return write(tmp_path / "rows.jsonl", rows)


def statuses(review: Review) -> list[str]:
    return [state.status for state in review.states]


def test_generated_rows_are_pending_and_every_decision_outlives_the_session(file: Path, tmp_path: Path) -> None:
    review = open_review(str(file), tmp_path)
    assert statuses(review) == ["open", "open", "pending", "open"]
    review.decide(0, "reject", note="not ours")
    review.decide(1, "edit", edited=chat("two", "B"))
    review.decide(2, "accept")
    review.decide(2, "note", note="ask Bo")
    again = open_review(str(file), tmp_path)
    assert statuses(again) == ["rejected", "accepted", "accepted", "open"]
    assert again.states[0].reason == "rejected in review by ada: not ours"
    assert again.states[1].example == chat("two", "B")
    assert not is_pending(again.states[2].example)
    assert [said.note for said in again.states[2].notes] == ["ask Bo"]
    assert (again.next_undecided(0), again.next_undecided(3)) == (3, 3)


def test_undo_takes_back_decisions_one_by_one_also_of_an_earlier_session(file: Path, tmp_path: Path) -> None:
    review = open_review(str(file), tmp_path)
    review.decide(0, "accept")
    review.decide(1, "edit", edited=chat("two", "B"))
    review.decide(1, "reject")
    assert review.undo() == 1
    assert review.states[1].example == chat("two", "B")
    again = open_review(str(file), tmp_path)
    assert [again.undo(), again.undo(), again.undo()] == [1, 0, None]
    assert statuses(again) == statuses(open_review(str(file), tmp_path)) == ["open", "open", "pending", "open"]


def test_a_reviewed_file_and_its_ledger_say_where_each_line_went(file: Path, tmp_path: Path) -> None:
    review = open_review(str(file), tmp_path)
    review.decide(0, "reject", note="not ours")
    review.decide(3, "edit", edited=chat("two", "B"))
    out = output_path(file)
    made = write_file(review, out)
    assert [row.example for row in load(out).examples] == [chat("two", "b"), chat("two", "B")]
    ledger = [json.loads(line) for line in made.ledger_path.read_text().splitlines()]
    assert [(row["line"], row["status"]) for row in ledger] == [
        (1, "rejected"), (2, "dropped"), (3, "trained"), (4, "dropped"), (5, "trained"),
    ]  # fmt: skip
    assert ledger[0]["reason"] == "rejected in review by ada: not ours"
    assert ledger[3]["reason"] == "generated, not yet approved in review"
    assert ledger[4]["reason"] == "edited in review by ada"
    review.decide(2, "accept")
    write_file(review, out)  # its own output may be replaced
    refuse_pending(load_examples(out).examples, out)
    assert len(load(out).examples) == 3


def test_a_file_that_no_review_wrote_is_not_replaced(file: Path, tmp_path: Path) -> None:
    review = open_review(str(file), tmp_path)
    write_file(review, tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").write_text("mine\n")
    for out, words in ((tmp_path / "out.jsonl", "no output of a review"), (file, "the file under review")):
        with pytest.raises(InputError, match=words):
            write_file(review, out)
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"
    write_file(review, tmp_path / "out.jsonl", force=True)


def test_a_file_changed_during_the_review_is_not_written_and_decisions_follow_its_rows(
    file: Path, tmp_path: Path
) -> None:
    review = open_review(str(file), tmp_path)
    review.decide(0, "reject")
    write(file, [chat("new", "z"), chat("one", "a"), chat("two", "changed")])
    with pytest.raises(InputError, match="was changed during the review"):
        write_file(review, output_path(file))
    assert statuses(open_review(str(file), tmp_path)) == ["open", "rejected", "open"]


def test_a_data_set_under_review_becomes_its_next_version(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "datasets"
    add(root, load(file), name="support")
    review = open_review("support", root)
    review.decide(0, "reject", note="not ours")
    review.decide(2, "accept")
    made = write_version(root, "support")
    assert made.counts == {"added": 0, "removed": 1, "edited": 1, "rejected": 1, "reviewed": 1}
    assert [(row.row, row.reason) for row in made.dataset.left] == [(1, "rejected in review by ada: not ours")]
    assert made.dataset.row_numbers == [2, 3, 4]
    assert [step["operation"] for step in made.dataset.operations] == ["add", "review"]
    again = open_review("support", root)
    assert statuses(again) == ["open", "accepted", "open"]
    assert not write_version(root, "support").is_new
    assert add(root, load(file), name="support").dataset.examples == made.dataset.examples  # the decisions hold


def test_a_row_changed_after_its_approval_is_pending_again() -> None:
    row = chat("three", "c", generated=MADE)
    accept = decide("1", state_of(row, []), action="accept")
    assert state_of(row, [accept]).status == "accepted"
    assert state_of(chat("three", "changed", generated=MADE), [accept]).status == "pending"


def test_training_refuses_generated_rows_and_names_the_review(file: Path) -> None:
    with pytest.raises(InputError, match=r"1 row was generated and not approved by anyone \(line 4\)") as caught:
        refuse_pending(load_examples(file).examples, file)
    assert f"tunesmith review {file}" in caught.value.todo
    refuse_pending([row for row in load_examples(file).examples if row.line != 4], file)


def test_the_command_train_reads_no_generated_row_that_nobody_approved(file: Path, tmp_path: Path) -> None:
    from tunesmith.recipe import Recipe
    from tunesmith.worker import prepare

    for recipe in (
        Recipe(data=str(file)),
        Recipe(data=str(write(tmp_path / "ok.jsonl", [chat("q", "a")])), validation=str(file)),
    ):
        with pytest.raises(InputError, match="not approved by anyone"):
            prepare(recipe, None, say=lambda text: None)


@settings(max_examples=30, deadline=None)
@given(
    actions=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(("accept", "reject", "edit", "note", "undo")))),
    torn=st.integers(0, 60),
)
def test_a_log_read_again_gives_the_same_states_whatever_happened_and_wherever_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[int, Any]], torn: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    file = write(folder / "rows.jsonl", [chat("one", "a"), chat("two", "b"), chat("three", "c", generated=MADE)])
    review, before = open_review(str(file), folder), []
    for index, action in actions:
        before = review.states[:]
        edited = chat("edited", f"{index}") if action == "edit" else None
        review.decide(index, action, note="n" if action == "note" else "", edited=edited)
    assert open_review(str(file), folder).states == review.states
    log = review.log.path
    if actions:
        whole = log.read_bytes()
        last = len(whole.rstrip(b"\n").split(b"\n")[-1])
        log.write_bytes(whole[: len(whole) - 1 - last + min(torn, last - 1)])  # killed while the last line was written
        resumed = open_review(str(file), folder)
        assert resumed.states == before
        resumed.decide(0, "note", note="after the crash")
        assert open_review(str(file), folder).states == resumed.states


def test_a_line_that_is_no_decision_is_named(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"key":"1"}\n')
    with pytest.raises(InputError, match="log:1: this line is no decision"):
        DecisionLog(tmp_path / "log").read()
