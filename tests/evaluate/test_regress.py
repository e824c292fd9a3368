"""Before and after, paired: what got worse is said, what cannot be seen too, and noise over many suites is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.evaluate.contenders import Fixed
from tunesmith.chat import Message
from tunesmith.contender import Reply
from tunesmith.errors import InputError, RunError
from tunesmith.evaluate.choices import Question
from tunesmith.evaluate.regress import Change, Regression, compare, regress
from tunesmith.evaluate.stats import holm, paired_difference
from tunesmith.evaluate.suites.suite import ChoiceSuite, Measure, Measured, ReplySuite, Suite, Values


def plain_suite(name: str, measure: Measure, rows: int) -> ReplySuite:
    """A reply counts as the number it is."""

    def score(replies: Sequence[Reply]) -> Values:
        return {measure.name: [float(reply.text) for reply in replies]}

    return ReplySuite(name, [measure], [(Message("user", f"q{row}"),) for row in range(rows)], 4, score)


def changed(measure: Measure, before: Sequence[float], after: Sequence[float]) -> Change:
    suite = plain_suite("s", measure, len(before))
    (change,) = compare([(suite, Measured({measure.name: before}), Measured({measure.name: after}))])
    return change


HALF = [1.0, 0.0] * 50
FEWER = [1.0, 0.0] * 35 + [0.0, 0.0] * 15


@pytest.mark.parametrize(
    ("better", "before", "after", "outcome"),
    [
        (1, HALF, FEWER, "worse"),
        (1, FEWER, HALF, "better"),
        (-1, FEWER, HALF, "worse"),
        (0, FEWER, HALF, "changed"),
        (1, HALF, HALF, "same"),
        (1, HALF, [0.0, 0.0, *HALF[2:]], "same"),
        (1, [1.0, *[0.0] * 99], [0.0] * 100, "floor"),
    ],
)
def test_a_change_is_judged_by_its_direction_and_its_rows(
    better: int, before: list[float], after: list[float], outcome: str
) -> None:
    change = changed(Measure("m", "right", better=better), before, after)
    assert change.outcome == outcome == change.as_dict()["outcome"]
    assert change.difference == paired_difference(before, after)


def test_the_sentence_says_the_change_its_interval_and_what_would_be_seen() -> None:
    worse = changed(Measure("m", "right"), HALF, FEWER)
    assert worse.sentence.startswith("s, right: 50.0 % before, 35.0 % after: worse (-15.0 points, -23.")
    assert worse.sentence.endswith("corrected p < 0.001).")
    same = changed(Measure("m", "right"), HALF, [*[0.0, 1.0] * 9, 0.0, 0.0, *HALF[20:]])
    assert "no change can be seen (-1.0 points" in same.sentence and "points would be, 4 times of 5." in same.sentence
    assert changed(Measure("m", "right"), HALF, HALF).sentence.endswith("after: the same on all 100 rows.")
    floor = changed(Measure("m", "right", floor=0.5), HALF, [0.0, 0.0, *HALF[2:]])
    assert "near what guessing gives, where a loss cannot show" in floor.sentence
    longer = changed(Measure("words", "words a reply", better=0, unit="words"), [90.0] * 40, [30.0] * 40)
    assert longer.sentence.startswith("s, words a reply: 90 before, 30 after: changed (-60 words, -60 to -60")


def test_p_is_corrected_over_judged_measures_and_drift_apart() -> None:
    rows = 40
    after = [0.0] * 6 + [1.0] * (rows - 6)  # p = 0.031 alone
    pairs: list[tuple[Suite, Measured, Measured]] = []
    for name, better, judged in (("a", 1, True), ("b", -1, True), ("c", 0, True), ("d", 1, False)):
        suite = plain_suite(name, Measure("m", "right", better=better, judged=judged), rows)
        pairs.append((suite, Measured({"m": [1.0] * rows}), Measured({"m": after})))
    a, b, c, d = compare(pairs)
    p = paired_difference([1.0] * rows, after).p
    assert p < 0.05 and [a.p_holm, b.p_holm] == holm([p, p]) and c.p_holm == d.p_holm == p
    assert [one.outcome for one in (a, b, c, d)] == ["same", "same", "changed", "same"]
    assert d.sentence.endswith("(not judged).")


def test_both_are_asked_the_same_and_the_answer_names_what_got_worse() -> None:
    suites = [
        plain_suite("sums", Measure("m", "right"), 100),
        plain_suite("safety", Measure("h", "bad", better=-1), 100),
    ]
    good, bad = (["1", "0"] * 50, ["1", "0"] * 35 + ["0"] * 30)

    class Scripted(Fixed):
        def answer(self, prompts: Sequence[Sequence[Message]], **options: object) -> list[Reply]:
            self.texts = scripts[self.name].pop(0)
            return super().answer(prompts, max_new_tokens=4)

    scripts = {"base:m": [good, good], "adapter:d": [bad, good]}
    before, after = Scripted("base:m", []), Scripted("adapter:d", [])
    found = regress(before, after, suites=suites)
    assert isinstance(found, Regression) and before.asked == after.asked
    assert found.sentence.startswith("Worse: sums, right (-15.0 points, ")
    assert "No change can be seen in: safety, bad. Not ruled out is a loss of up to 3.7 points" in found.sentence
    document = found.as_dict()
    assert document["worse"] == ["sums/m"] and set(document["seconds"]) == {"sums", "safety"}
    assert len(found.records) == 400 and found.records[100]["contender"] == "after"


def test_nothing_worse_is_said_with_what_is_not_ruled_out_and_how_replies_changed() -> None:
    rows = plain_suite("general", Measure("words", "words a reply", better=0, unit="words"), 3)
    changes = [changed(Measure("m", "right"), HALF, HALF), changed(rows.measures[0], [9.0] * 40, [3.0] * 40)]
    sentence = Regression("a", "b", changes, [], {}).sentence
    assert sentence.startswith("Nothing got worse that these rows show.")
    assert sentence.endswith("Replies look different: s, words a reply 9 -> 3.")


def test_a_contender_that_cannot_be_measured_is_refused_before_any_is_asked() -> None:
    first = plain_suite("sums", Measure("m", "right"), 2)
    choices = ChoiceSuite("mc", [Question("Q:", ("a", "b"), 0)])
    contender = Fixed("url:x", ["1", "0"])
    with pytest.raises(InputError, match="cannot say how likely"):
        regress(contender, contender, suites=[first, choices])
    assert contender.asked == []
    with pytest.raises(RunError, match="gave 2 replies to 3 prompts of sums"):
        regress(contender, contender, suites=[plain_suite("sums", Measure("m", "right"), 3)])
