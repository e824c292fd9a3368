"""An evaluation asks everyone the same, adds up, and keeps every reply."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.chat import Example, Message
from tunesmith.contender import FewShotContender, Reply
from tunesmith.errors import InputError, RunError
from tunesmith.evaluate.evaluation import Evaluation, prompt_text
from tunesmith.evaluate.mistakes import telling_rows
from tunesmith.evaluate.run import evaluate, time_alone
from tunesmith.evaluate.scorers import make_scorer

EXAMPLES = [label_example(f"question {number}", "abc"[number % 3]) for number in range(9)]
BASE = Fixed("base", ["a"] * 9)
TUNED = Fixed("tuned", ["b", "b", "c", "a", "b", "c", "a", "junk " * 20, "c"])


def run(*contenders: Fixed) -> Evaluation:
    scorers = {name: make_scorer(name, labels=["a", "b", "c"]) for name in ("exact", "label")}
    return evaluate(EXAMPLES, contenders, scorers=scorers, max_new_tokens=4)


def test_every_contender_is_asked_the_same_prompts_and_progress_names_it() -> None:
    first, second, heard = Fixed("x", ["a"] * 9), Fixed("y", ["b"] * 9), []
    evaluate(
        EXAMPLES,
        [first, second],
        scorers={"exact": make_scorer("exact")},
        max_new_tokens=4,
        on_progress=lambda name, num_rows: heard.append((name, num_rows)),
    )
    assert first.asked == second.asked == [[example.prompt for example in EXAMPLES]]
    assert heard == [("x", 0), ("x", 9), ("y", 0), ("y", 9)]


def test_the_summary_holds_means_latencies_and_tokens() -> None:
    summary = run(BASE, TUNED).as_dict()
    base, tuned = summary["contenders"]
    assert summary["rows"] == 9
    assert base["scores"]["exact"]["mean"] == pytest.approx(3 / 9)
    assert tuned["scores"]["exact"]["mean"] == pytest.approx(7 / 9)
    assert tuned["scores"]["label"]["mean"] == pytest.approx(8 / 9)
    assert base["latency_s"]["p50"] == pytest.approx(0.5)
    assert base["tokens"] == {"prompt_mean": 10.0, "completion_mean": 2.0}
    assert base["stop_rate"] == 1.0
    json.dumps(summary, allow_nan=False)


def test_differences_cover_every_ordered_pair_and_scorer() -> None:
    evaluation = run(BASE, Fixed("few-shot", ["b"] * 9), TUNED)
    differences = evaluation.differences()
    assert [(row["a"], row["b"]) for row in differences[::2]] == [
        ("base", "few-shot"),
        ("base", "tuned"),
        ("few-shot", "tuned"),
    ]
    assert {row["scorer"] for row in differences} == {"exact", "label"}
    row = next(row for row in differences if (row["a"], row["b"], row["scorer"]) == ("base", "tuned", "exact"))
    assert (row["wins"], row["losses"], row["ties"]) == (5, 1, 3)
    assert row["difference"] == pytest.approx(4 / 9)


def test_disagreements_show_gains_then_losses_with_every_reply() -> None:
    rows = run(BASE, TUNED).disagreements()
    assert len(rows) == 6
    assert rows[-1]["row"] == 1
    assert rows[-1]["scores"] == {"base": 1.0, "tuned": 0.0}
    assert rows[-1]["replies"] == {"base": "a", "tuned": "b"}
    assert rows[0]["prompt"] == "question 1"
    assert run(TUNED).disagreements() == []


def test_confusions_and_worst_labels_are_of_the_last_contender() -> None:
    evaluation = run(BASE, TUNED)
    assert evaluation.confusions()[0] == {"expected": "a", "replied": "b", "count": 1}
    assert len(str(evaluation.confusions()[1]["replied"])) <= 60
    assert evaluation.worst_labels()[-1] == {"label": "c", "rows": 3, "correct": 3}
    assert sum(int(str(row["rows"])) for row in evaluation.worst_labels()) == 9


def test_answers_that_are_no_labels_give_no_confusions() -> None:
    examples = [label_example("q", f"a long answer, number {number}") for number in range(4)]
    replies = Fixed("x", ["?"] * 4)
    evaluation = evaluate(examples, [replies], scorers={"exact": make_scorer("exact")}, max_new_tokens=4)
    assert evaluation.confusions() == evaluation.worst_labels() == []


def test_write_replies_keeps_every_reply_of_every_contender(tmp_path: Path) -> None:
    path = run(BASE, TUNED).write_replies(tmp_path / "new" / "replies.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 18
    assert (lines[1]["row"], lines[1]["contender"], lines[1]["reply"], lines[1]["expected"]) == (1, "tuned", "b", "a")
    assert lines[1]["example"] == EXAMPLES[0].id
    assert lines[1]["scores"]["exact"] == {"value": 0.0, "why": "expected 'a', the reply is 'b'"}
    assert {"prompt_tokens", "completion_tokens", "latency_s", "finish_reason"} <= lines[1].keys()
    assert [file.name for file in path.parent.iterdir()] == ["replies.jsonl"]


def test_bad_input_is_refused_before_anyone_is_asked() -> None:
    exact = {"exact": make_scorer("exact")}
    silent = Fixed("x", [])
    with pytest.raises(InputError, match="no row"):
        evaluate([], [silent], scorers=exact, max_new_tokens=4)
    with pytest.raises(InputError, match="no contender"):
        evaluate(EXAMPLES, [], scorers=exact, max_new_tokens=4)
    with pytest.raises(InputError, match="no scorer"):
        evaluate(EXAMPLES, [silent], scorers={}, max_new_tokens=4)
    with pytest.raises(InputError, match="the name 'x'"):
        evaluate(EXAMPLES, [silent, silent], scorers=exact, max_new_tokens=4)
    with pytest.raises(InputError, match="Row 1, scorer 'json'"):
        evaluate(EXAMPLES, [silent], scorers={"json": make_scorer("json")}, max_new_tokens=4)
    assert silent.asked == []


@pytest.mark.parametrize(
    ("example", "word"),
    [
        (replace(label_example("a", "b"), tools=({"type": "function", "function": {"name": "f"}},)), "tools"),
        (Example((Message("text", "Once upon a time.", trained=True),)), "plain text"),
        (Example((Message("user", "2 + 2?"),), metadata={"answer": "4"}), "no answer"),
    ],
)
def test_rows_that_would_be_asked_or_scored_as_something_else_are_refused(example: Example, word: str) -> None:
    with pytest.raises(InputError, match=word):
        evaluate([example], [Fixed("a", ["b"])], scorers={"exact": make_scorer("exact")}, max_new_tokens=4)


def test_an_evaluation_goes_on_with_further_contenders_without_asking_the_first_again() -> None:
    scorers = {name: make_scorer(name, labels=["a", "b", "c"]) for name in ("exact", "label")}
    first = Fixed("base", BASE.texts)
    before = evaluate(EXAMPLES, [first], scorers=scorers, max_new_tokens=4)
    both = evaluate(EXAMPLES, [TUNED], scorers=scorers, max_new_tokens=4, before=before)
    assert both.as_dict() == run(BASE, TUNED).as_dict() and len(first.asked) == 1
    with pytest.raises(InputError, match="the name 'base'"):
        evaluate(EXAMPLES, [BASE], scorers=scorers, max_new_tokens=4, before=before)
    with pytest.raises(InputError, match="other rows or scorers"):
        evaluate(EXAMPLES[:5], [TUNED], scorers=scorers, max_new_tokens=4, before=before)


class Single(Fixed):
    """Batches; alone it takes as long as `seconds` says."""

    seconds = 1.0

    batched = True

    def answer(self, prompts: Sequence[Sequence[Message]], **options: Any) -> list[Reply]:
        if len(prompts) > 1:
            return super().answer(prompts, **options)
        self.asked.append(prompts)
        return [Reply("a", 1, 1, self.seconds, "stop")]


def test_a_few_rows_are_asked_alone_for_the_latency_of_one_request() -> None:
    batched, server = Single("batched", ["a"] * 9), Fixed("server", ["a"] * 9)
    scorers = {"exact": make_scorer("exact")}
    evaluation = evaluate(EXAMPLES, [batched, server], scorers=scorers, max_new_tokens=4)
    assert evaluation.as_dict()["contenders"][0]["one_request_s"] is None
    timed = time_alone(evaluation, [batched, server], max_new_tokens=4).as_dict()["contenders"]
    assert timed[0]["one_request_s"] == {"p50": 1.0, "p95": 1.0, "rows": 6}  # more than 5 seconds were enough
    batched.seconds = 9.0
    assert len(time_alone(evaluation, [batched, server], max_new_tokens=4).answers[0].alone_s) == 3
    assert timed[0]["latency_s"] == timed[1]["latency_s"] and timed[0]["replies_per_s"] == pytest.approx(9 / 4.5)
    assert timed[1]["one_request_s"]["rows"] == 9 and len(server.asked) == 1


def test_a_contender_that_would_be_shown_the_answer_is_refused() -> None:
    leak = label_example("  Question 4 ", "b")
    few = FewShotContender(Fixed("x", ["a"] * 9), [label_example("other", "a"), leak], k=1)
    with pytest.raises(InputError, match="1 of the rows are also among the examples of .*; row 5 is example 2"):
        evaluate(EXAMPLES, [few], scorers={"exact": make_scorer("exact")}, max_new_tokens=4)


def test_what_was_left_out_of_prompts_and_what_replies_cost_is_in_the_summary() -> None:
    def priced(prompts: Sequence[Sequence[Message]], **_: Any) -> list[Reply]:
        return [Reply("a", 1, 1, 0.1, "stop", cost=0.5, cached=True) for _ in prompts]

    inner = Fixed("x", [])
    inner.answer = priced  # type: ignore[method-assign]
    inner.room = lambda messages: 0  # type: ignore[attr-defined]
    few = FewShotContender(inner, [label_example("other", "a")], k=1)
    (found,) = evaluate(EXAMPLES, [few], scorers={"exact": make_scorer("exact")}, max_new_tokens=4).as_dict()[
        "contenders"
    ]
    assert found["notes"][0].startswith("9 of 9 rows were shown fewer than 1 examples")
    assert (found["cost"], found["cached"]) == (4.5, 9)


def test_a_wrong_number_of_replies_is_a_run_error() -> None:
    with pytest.raises(RunError, match="x gave 2 replies to 9 prompts"):
        evaluate(EXAMPLES, [Fixed("x", ["a", "b"])], scorers={"exact": make_scorer("exact")}, max_new_tokens=4)


def test_telling_rows_show_a_few_losses_among_many_gains() -> None:
    before, after = [0.0] * 200 + [1.0] * 5, [1.0] * 200 + [0.0] * 5
    rows = telling_rows(before, after, expected=["x"] * 205, limit=20)
    assert len(rows) == 20
    assert [row for row in rows if row >= 200] == [200, 201, 202]


def test_telling_rows_prefer_large_differences_and_then_distinct_answers() -> None:
    before, after = [0.0] * 5, [0.5, 1.0, 1.0, 1.0, 0.0]
    assert telling_rows(before, after, expected=["w", "x", "x", "y", "z"], limit=20) == [1, 3, 2, 0]


@pytest.mark.parametrize(("gains", "losses"), [(0, 50), (50, 0), (1, 50), (2, 2), (30, 30), (100, 1)])
def test_telling_rows_fill_the_limit_whenever_there_are_enough(gains: int, losses: int) -> None:
    before, after = [0.0] * gains + [1.0] * losses, [1.0] * gains + [0.0] * losses
    rows = telling_rows(before, after, expected=["x"] * len(before), limit=20)
    assert len(rows) == len(set(rows)) == min(20, gains + losses)


def test_the_prompt_text_of_a_longer_conversation_names_the_roles() -> None:
    turns = (
        Message("user", "hi"),
        Message("assistant", "hello"),
        Message("user", "bye"),
        Message("assistant", "x", True),
    )
    assert prompt_text(Example(turns)) == "user: hi\nassistant: hello\nuser: bye"
