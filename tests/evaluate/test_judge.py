"""A judge is asked in both orders; a taste for a place shows and does not decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.evaluate.contenders import Fixed, label_example
from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.errors import InputError
from tunesmith.evaluate.evaluation import Evaluation
from tunesmith.evaluate.run import evaluate
from tunesmith.evaluate.scorers import make_scorer
from tunesmith.evaluate.scorers.judge import Judge, read_verdict

EXAMPLES = [label_example(f"question {number}", "a good answer") for number in range(8)]


class Rule:
    """A judge that follows a rule: (first answer, second answer) -> what it says."""

    def __init__(self, rule: Callable[[str, str], str], name: str = "judge") -> None:
        self.name = name
        self.rule = rule
        self.asked: list[str] = []

    def answer(self, prompts: Sequence[Sequence[Message]], **options: object) -> list[Reply]:
        texts = [prompt[-1].content for prompt in prompts]
        self.asked += texts
        pairs = [
            [text.partition(f"<answer_{side}>\n")[2].partition(f"\n</answer_{side}>")[0] for side in "AB"]
            for text in texts
        ]
        return [Reply(self.rule(*pair), 1, 1, 0.1, "stop") for pair in pairs]


def longer(first: str, second: str) -> str:
    return "Longer is better. [[A]]" if len(first) > len(second) else "[[B]]" if len(second) > len(first) else "[[tie]]"


def run(judge: Rule, *contenders: Fixed) -> Evaluation:
    return evaluate(EXAMPLES, contenders, scorers={"judge:x": Judge(judge)}, max_new_tokens=4)


def test_a_judge_with_a_reason_gives_a_win_rate_and_no_place_is_preferred() -> None:
    evaluation = run(Rule(longer), Fixed("first", ["four"] * 8), Fixed("last", ["longer"] * 6 + ["x", "four"]))
    assert evaluation.of("first").values("judge:x") == [0.5] * 8
    assert evaluation.of("last").values("judge:x") == [1.0] * 6 + [0.0, 0.5]
    figures = evaluation.of("last").aggregates["judge:x"].figures
    assert figures["win_rate"].mean == pytest.approx(6.5 / 8)
    assert (figures["first_place_share"].mean, figures["order_decides"].mean) == (0.5, 0.0)
    assert "1 rows have the same text" in evaluation.of("last").aggregates["judge:x"].sentences[-1]
    assert evaluation.difference("first", "last", scorer="judge:x").difference == pytest.approx(6.5 / 8 - 0.5)


def test_a_judge_that_always_takes_the_first_place_says_nothing_but_is_found_out() -> None:
    evaluation = run(Rule(lambda first, second: "[[A]]"), Fixed("first", ["a"] * 8), Fixed("last", ["b"] * 8))
    found = evaluation.of("last")
    assert found.values("judge:x") == [0.5] * 8
    figures = found.aggregates["judge:x"].figures
    assert (figures["first_place_share"].mean, figures["order_decides"].mean) == (1.0, 1.0)
    assert found.aggregates["judge:x"].sentences == [
        "The judge leans to the first answer (100% for the first); both orders were asked."
    ]
    assert "stands first" in found.scores["judge:x"][0].why


def test_verdicts_that_cannot_be_read_are_ties_that_are_counted_and_said() -> None:
    evaluation = run(Rule(lambda first, second: "Both are nice."), Fixed("first", ["a"] * 8), Fixed("last", ["b"] * 8))
    found = evaluation.of("last")
    assert found.values("judge:x") == [0.5] * 8
    assert found.aggregates["judge:x"].sentences[0].startswith("8 of 8 judged rows")
    assert "first_place_share" not in found.aggregates["judge:x"].figures


def test_a_contender_alone_is_compared_with_the_expected_answers() -> None:
    evaluation = run(Rule(longer), Fixed("only", ["a much longer answer"] * 8))
    assert evaluation.of("only").values("judge:x") == [1.0] * 8


def test_the_judge_sees_the_question_and_the_rubric_and_no_names(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.md"
    rubric.write_text("Prefer rhymes.")
    rule = Rule(longer)
    judge = make_scorer(
        f"judge:base:M+rubric:{rubric}", build=lambda spec: rule if spec == "base:M" else pytest.fail(spec)
    )
    evaluate(EXAMPLES, [Fixed("acme", ["a"] * 8), Fixed("zeta", ["bb"] * 8)], scorers={"j": judge}, max_new_tokens=4)
    assert len(rule.asked) == 16
    assert all("Prefer rhymes." in text and "question" in text for text in rule.asked)
    assert not any("acme" in text or "zeta" in text for text in rule.asked)


def test_a_contender_does_not_judge_itself() -> None:
    with pytest.raises(InputError, match="its own replies"):
        run(Rule(longer, name="first"), Fixed("first", ["a"] * 8))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Not [[B]], rather [[A]]", 1.0),
        ("A is clearer.\n**B**", 0.0),
        ("tie", 0.5),
        ("[[ Tie ]]", 0.5),
        ("A or B?", None),
        ("", None),
    ],
)
def test_the_last_clear_verdict_counts(text: str, wanted: float | None) -> None:
    assert read_verdict(text) == wanted
