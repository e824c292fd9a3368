"""A blind comparison: who sees what in which order, votes that survive, what they say, and the pages that show it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.contenders import label_example
from tunesmith.errors import InputError
from tunesmith.evaluate.blind import CHOICES, VOTES, Comparison, create, open_comparison, preferences
from tunesmith.evaluate.blind_page import rate_page, result_page, start_page
from tunesmith.evaluate.saved import SavedReplies
from tunesmith.evaluate.tally import tally

FACTS = {"a": "base:plain", "b": "adapter:tuned", "weights": {}, "seed": 0, "raters": ["anna", "ben"]}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Comparison]:
    def make(rows: int = 6, *, replies: tuple[Sequence[str], Sequence[str]] | None = None) -> Comparison:
        replies = replies or ([f"plain {row}" for row in range(rows)], [f"tuned {row}" for row in range(rows)])
        examples = [label_example(f"Question {row}?", "x") for row in range(len(replies[0]))]
        return create(tmp_path / "blind", examples, replies=replies, facts=FACTS)

    return make


def judge(comparison: Comparison, rater: str, says: Callable[[int], str]) -> None:
    """Judge all rows; `says` gives for a row who is better ("a", "b"), "tie" or "both_bad"."""
    while shown := comparison.next_row(rater):
        row, left = shown
        said = says(row.number)
        choice: Any = {left: "left", "tie": "tie", "both_bad": "both_bad"}.get(said, "right")
        assert comparison.vote(rater, row.number, choice=choice)


# -- what raters see ---------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), rater=st.sampled_from(["anna", "Ben B.", "Ünal"]), rows=st.integers(1, 30))
def test_every_rater_sees_every_row_once_with_each_contender_on_the_left_of_half(
    seed: int, rater: str, rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    comparison = Comparison(tmp_path_factory.getbasetemp())
    vars(comparison).update(facts={"seed": seed}, rows=dict.fromkeys(range(1, rows + 1)))
    order = comparison.order(rater)
    assert sorted(number for number, _ in order) == list(range(1, rows + 1))
    sides = Counter(left for _, left in order)
    assert abs(sides["a"] - sides["b"]) <= 1
    assert comparison.order(rater) == order


def test_raters_see_rows_and_sides_in_orders_of_their_own(make: Callable[..., Comparison]) -> None:
    comparison = make(30)
    assert comparison.order("anna") != comparison.order("ben")


def test_a_page_to_judge_does_not_tell_the_contenders_apart(make: Callable[..., Comparison]) -> None:
    comparison = make(replies=(["one"], ["two"]))
    for page in (rate_page(comparison, "anna", path="/t", nonce="n"), start_page(comparison, path="/t", nonce="n")):
        assert "plain" not in page
        assert "tuned" not in page
    assert "Reply 1" in rate_page(comparison, "anna", path="/t", nonce="n")


def test_texts_are_escaped(make: Callable[..., Comparison]) -> None:
    comparison = make(replies=(["<script>alert(1)</script>"], ['"><img src=x>']))
    page = rate_page(comparison, "<b>", path="/t", nonce="n")
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<b>" not in page


def test_rows_with_the_same_reply_twice_are_not_shown_but_counted(make: Callable[..., Comparison]) -> None:
    comparison = make(replies=(["same", "x"], [" same\n", "y"]))
    assert (list(comparison.rows), comparison.same) == ([2], 1)
    with pytest.raises(InputError, match="the same to all 1 prompts"):
        make(replies=(["same"], ["same"]))


# -- votes that survive ------------------------------------------------------------------------------------------


def test_votes_are_there_for_whoever_opens_the_comparison_next_even_after_a_torn_line(
    make: Callable[..., Comparison],
) -> None:
    comparison = make()
    row, left = comparison.next_row("anna") or pytest.fail("no row")
    assert comparison.vote("anna", row.number, choice="left", comment=" shorter ")
    with (comparison.directory / VOTES).open("ab") as file:
        file.write(b'{"event": "vote", "rater": "an')  # killed here
    again = Comparison(comparison.directory)
    (vote,) = again.votes().cast
    assert (vote.row, vote.winner, vote.comment) == (row.number, left, "shorter")
    next_row, _ = again.next_row("anna") or pytest.fail("no row")
    assert next_row.number != row.number
    assert again.vote("anna", next_row.number, choice="tie")
    assert len(again.votes().cast) == 2


def test_a_page_sent_twice_counts_once_and_undo_brings_the_row_back(make: Callable[..., Comparison]) -> None:
    comparison = make()
    row, _ = comparison.next_row("anna") or pytest.fail("no row")
    assert not comparison.undo("anna")
    assert comparison.vote("anna", row.number, choice="left")
    assert not comparison.vote("anna", row.number, choice="right")
    assert comparison.undo("anna")
    assert comparison.votes().cast == ()
    assert comparison.next_row("anna") == (row, dict(comparison.order("anna"))[row.number])


def test_after_the_end_nothing_can_be_changed(make: Callable[..., Comparison]) -> None:
    comparison = make()
    judge(comparison, "anna", lambda row: "b")
    comparison.end()
    votes = comparison.votes()
    row, _ = comparison.next_row("ben") or pytest.fail("no row")
    assert not comparison.vote("ben", row.number, choice="left")
    assert not comparison.undo("anna")
    comparison.end()
    assert comparison.votes() == votes
    assert votes.ended


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.sampled_from([*CHOICES, "undo"]), max_size=15))
def test_what_is_judged_and_what_is_left_always_add_up(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    examples = [label_example(f"Question {row}?", "x") for row in range(5)]
    folder = tmp_path_factory.mktemp("blind")
    comparison = create(folder, examples, replies=(["p"] * 5, ["q"] * 5), facts=FACTS)
    depth = 0
    for step in steps:
        shown = comparison.next_row("anna")
        if step == "undo":
            depth -= comparison.undo("anna")
        elif shown:
            depth += comparison.vote("anna", shown[0].number, choice=step)  # type: ignore[arg-type]
        assert len(comparison.votes().cast) == depth
        assert (comparison.next_row("anna") is None) == (depth == 5)


def test_a_directory_that_holds_another_comparison_is_refused(make: Callable[..., Comparison], tmp_path: Path) -> None:
    assert open_comparison(tmp_path / "nothing", {}) is None
    directory = make().directory
    assert open_comparison(directory, {"a": "base:plain"})
    with pytest.raises(InputError, match="its a is 'base:plain'"):
        open_comparison(directory, {"a": "base:other"})


# -- what the votes say ------------------------------------------------------------------------------------------


def test_a_row_counts_once_for_the_reply_most_raters_prefer(make: Callable[..., Comparison]) -> None:
    comparison = make(9)
    judge(comparison, "anna", lambda row: "b" if row <= 8 else "tie")
    judge(comparison, "ben", lambda row: "b" if row <= 7 else "a" if row == 8 else "both_bad")
    result = tally(comparison)
    assert result["rows"] == {"prompts": 9, "same": 0, "judged": 9, "a": 0, "b": 7, "even": 2}
    assert result["votes"] == {"a": 1, "b": 15, "tie": 1, "both_bad": 1}
    assert (result["win_rate"]["mean"], result["win_rate"]["high"]) == (1.0, 1.0)
    assert result["win_rate"]["low"] == pytest.approx(0.5904, abs=1e-4)  # Clopper and Pearson's, 7 of 7
    assert result["net"]["p"] == pytest.approx(2 / 2**7)  # the sign test
    assert result["sentence"].startswith("adapter:tuned is preferred: it won 7 of the 7 rows")
    assert result["agreement"]["rows"] == 9
    page = result_page(comparison)
    assert "adapter:tuned is preferred" in page
    assert "<script" not in page


def test_few_votes_settle_nothing_and_it_is_said(make: Callable[..., Comparison]) -> None:
    comparison = make(4)
    assert tally(comparison)["sentence"] == "Nothing has been judged yet."
    judge(comparison, "anna", lambda row: "a" if row < 4 else "b")
    result = tally(comparison)
    assert "base:plain is ahead, but these rows do not settle it: it won 3 of the 4" in result["sentence"]
    assert "cannot be" in result["visible"]
    assert result["agreement"]["alpha"] is None


def test_a_rater_who_always_takes_the_left_is_seen(make: Callable[..., Comparison]) -> None:
    comparison = make(20)
    while shown := comparison.next_row("anna"):
        comparison.vote("anna", shown[0].number, choice="left")
    position = tally(comparison)["position"]
    assert position["left_share"]["mean"] == 1
    assert "the side itself seems to have decided" in position["sentence"]
    assert tally(comparison)["rows"]["a"] == tally(comparison)["rows"]["b"] == 10


def test_preferences_are_training_data_that_our_own_reader_takes(
    make: Callable[..., Comparison], tmp_path: Path
) -> None:
    from tunesmith.data.load import load_examples

    comparison = make(4)
    judge(comparison, "anna", lambda row: {1: "a", 2: "b", 3: "tie", 4: "both_bad"}[row])
    rows, left_out = preferences(comparison)
    assert left_out == 2
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = [source.example for source in load_examples(path).examples]
    assert [(one.messages[-1].content, one.rejected[0].content) for one in read] == [
        ("plain 0", "tuned 0"),
        ("tuned 1", "plain 1"),
    ]
    assert read[0].prompt[0].role == "system"


# -- saved replies -----------------------------------------------------------------------------------------------


def test_saved_replies_are_found_by_their_example_and_a_missing_one_is_named(tmp_path: Path) -> None:
    examples = [label_example(f"Question {row}?", "x") for row in range(3)]
    path = tmp_path / "replies.jsonl"
    lines = [{"example": one.id, "contender": "base:m", "reply": f"r{row}"} for row, one in enumerate(examples[:2])]
    path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    saved = SavedReplies(f"replies:{path}#base:m", examples[:2])
    replies = saved.answer([one.prompt for one in examples[:2]], max_new_tokens=9)
    assert [reply.text for reply in replies] == ["r0", "r1"]
    assert saved.weights == {}
    (tmp_path / "report.json").write_text(json.dumps({"weights": {"base:m": {"base": "12"}}}))
    assert saved.weights == {"base": "12"}
    with pytest.raises(InputError, match="no reply of base:m to 1 of 3 prompts"):
        SavedReplies(f"replies:{path}#base:m", examples)
    with pytest.raises(InputError, match="It has base:m"):
        SavedReplies(f"replies:{path}#base:n", examples)
    with pytest.raises(InputError, match="replies:FILE#CONTENDER"):
        SavedReplies(f"replies:{path}", examples)
    with pytest.raises(InputError, match="no readable replies"):
        SavedReplies(f"replies:{tmp_path / 'none'}#x", examples)
