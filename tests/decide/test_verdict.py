"""The rule and its words: planted cases with known answers, and what must hold for any rungs."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decide.rungs import compare, compare_fast, hits, rung
from tunesmith.decide.costs import Answers, Prices, cost_of
from tunesmith.decide.judged import Verdict
from tunesmith.decide.rung import Rung
from tunesmith.decide.verdict import decide
from tunesmith.errors import InputError


def judged(*rungs: Rung, margin: float = 0.02, answers: Answers | None = None) -> Verdict:
    return decide(rungs, answers or Answers(), margin=margin, compare=compare)


def judged_fast(rungs: Sequence[Rung], margin: float, *, prices: Prices | None = None) -> Verdict:
    return decide(rungs, Answers(), margin=margin, compare=compare_fast, prices=prices)


def cost(verdict: Verdict, name: str) -> float:
    total = verdict.costs[name].total
    assert total is not None
    return total


# -- planted cases ---------------------------------------------------------------------------------------------------


def test_the_prompt_is_chosen_where_the_prompt_is_enough() -> None:
    verdict = judged(
        rung("prompt", hits(294, 300), seconds=0.1),
        rung("few-shot", hits(294, 300), seconds=0.3),
        rung("fine-tune", hits(294, 300), seconds=0.1, setup_s=600),
    )
    assert (verdict.outcome, verdict.chosen) == ("decided", "prompt")
    assert (
        verdict.headline == "Prompt: the cheapest measured rung that is not worse than any other by 2 points or more."
    )


def test_retrieval_is_chosen_where_the_facts_are_only_in_the_documents() -> None:
    verdict = judged(
        rung("prompt", hits(12, 300), seconds=0.1),
        rung("fine-tune", hits(20, 300), seconds=0.1, setup_s=600),
        rung("retrieval", hits(270, 300), seconds=0.4, setup_s=5),
    )
    assert verdict.chosen == "retrieval"
    assert {one.name: one.state for one in verdict.standings} == {
        "prompt": "worse",
        "fine-tune": "worse",
        "retrieval": "not worse",
    }


def test_the_fine_tune_is_chosen_where_only_training_helps() -> None:
    verdict = judged(
        rung("prompt", hits(3, 300), seconds=0.1),
        rung("few-shot nearest", hits(90, 300), seconds=0.5),
        rung("fine-tune", hits(260, 300), seconds=0.1, setup_s=600),
        rung("fine-tune + retrieval", hits(255, 300), seconds=0.5, setup_s=620),
    )
    assert verdict.chosen == "fine-tune"
    assert "Few-shot nearest, fine-tune + retrieval cost more and score no higher than fine-tune." in verdict.reasons


def test_the_floor_is_chosen_where_nothing_beats_it() -> None:
    verdict = judged(
        rung("floor", hits(270, 300), seconds=0.0001),
        rung("prompt", hits(30, 300), seconds=0.1),
        rung("fine-tune", hits(270, 300), seconds=0.1, setup_s=600),
    )
    assert verdict.chosen == "floor"


@pytest.mark.parametrize("rows", [12, 60])
def test_too_few_rows_are_said_with_the_number_that_would_do(rows: int) -> None:
    first = rung("prompt", hits(rows // 2, rows), seconds=0.1)
    verdict = judged(first, rung("fine-tune", hits(rows // 2, rows, first=3), seconds=0.1, setup_s=600))
    assert (verdict.outcome, verdict.chosen) == ("too few rows to say", None)
    assert verdict.open[0] == "prompt"
    (needed,) = [change for change in verdict.changes if change.startswith("Rows")]
    # sd² of the differences is 6/12 or 6/60; (1.96 + 0.84)² · sd² / 0.02², for two candidates or the one that is best
    assert {12: "9,9", 60: "2,0"}[rows] in needed


def test_a_dearer_rung_that_may_be_better_beyond_the_margin_keeps_the_cheapest_from_being_chosen() -> None:
    cheap = rung("prompt", hits(51, 100), seconds=0.1)  # the best mean, by one row
    assert judged(cheap, rung("fine-tune", hits(50, 100, first=40), seconds=1.0)).outcome == "too few rows to say"


def test_rows_on_which_all_agree_are_enough_from_189_on_for_a_margin_of_two_points() -> None:
    """A score interval without a difference ends at z² / (n + z²): below 0.02 from n = 189 on."""
    for rows, outcome in ((188, "too few rows to say"), (189, "decided")):
        pair = rung("floor", [1.0] * rows, seconds=0.001), rung("big model", [1.0] * rows, seconds=1.0, paid=0.01)
        assert judged(*pair).outcome == outcome


# -- costs and static answers ----------------------------------------------------------------------------------------


def test_a_thousand_requests_cost_their_seconds_and_their_share_of_the_set_ups() -> None:
    tuned = rung("fine-tune", [1.0], seconds=0.36, setup_s=3600)
    weekly = cost_of(tuned, prices=Prices(2.0, 10_000), answers=Answers("weekly"))
    assert weekly.running == pytest.approx(0.2)  # 360 s of an hour at 2.00
    assert weekly.upkeep == pytest.approx(52 / 12 * 2.0 / 10)
    remote = rung("big model", [1.0], seconds=9.9, paid=0.003)
    assert cost_of(remote, prices=Prices(2.0), answers=Answers()).total == pytest.approx(3.0)


def test_a_server_without_a_price_counts_as_the_dearest() -> None:
    verdict = judged(
        rung("big model", hits(300, 300), seconds=0.0), rung("fine-tune", hits(300, 300), seconds=9.0, setup_s=9999)
    )
    assert verdict.chosen == "fine-tune"
    assert verdict.costs["big model"].total is None


def test_facts_that_change_weekly_turn_the_verdict_from_training_to_retrieval() -> None:
    rungs = (
        rung("fine-tune", hits(270, 300), seconds=0.1, setup_s=3600),
        rung("retrieval", hits(270, 300), seconds=0.4, setup_s=5),
    )
    rarely = judged(*rungs, answers=Answers("rarely"))
    assert rarely.chosen == "fine-tune"
    assert "If facts changed weekly: retrieval." in rarely.changes
    assert judged(*rungs, answers=Answers("weekly")).chosen == "retrieval"


def test_an_answer_rules_rungs_out_and_says_so() -> None:
    rungs = (
        rung("prompt", hits(300, 300), seconds=0.1),
        rung("retrieval", hits(290, 300), seconds=0.4),
        rung("big model", hits(300, 300), seconds=0.1, paid=0.01),
    )
    verdict = judged(*rungs, answers=Answers(cite=True))
    assert verdict.chosen == "retrieval"
    assert any(reason.startswith("Prompt (100.0 %) is ruled out: it names no sources") for reason in verdict.reasons)
    at_home = judged(rungs[2], answers=Answers(data_may_leave=False))
    assert (at_home.outcome, at_home.chosen) == ("no rung fits the answers", None)


def test_what_cannot_be_decided_is_refused() -> None:
    with pytest.raises(InputError, match="No rung was measured"):
        judged()
    with pytest.raises(InputError, match="other numbers of rows"):
        judged(rung("prompt", [1.0], seconds=1), rung("floor", [1.0, 0.0], seconds=1))
    with pytest.raises(InputError, match="margin"):
        judged(rung("prompt", [1.0], seconds=1), margin=1.5)


# -- what holds for any rungs ----------------------------------------------------------------------------------------


@st.composite
def ladders(draw: st.DrawFn) -> list[Rung]:
    """A few rungs on the same 40 to 400 rows, right on random shares of them."""
    rows = draw(st.integers(40, 400))
    kinds = draw(st.lists(st.sampled_from(["floor", "prompt", "few-shot", "fine-tune", "retrieval"]), min_size=1,
                          max_size=4, unique=True))  # fmt: skip
    generator = random.Random(draw(st.integers(0, 10_000)))
    return [
        rung(kind, [float(generator.random() < share) for _ in range(rows)], seconds=seconds)
        for kind in kinds
        for share, seconds in [(draw(st.sampled_from([0.1, 0.7, 0.9, 1.0])), draw(st.floats(0.001, 1.0)))]
    ]


@settings(max_examples=25, deadline=None)
@given(ladders(), st.floats(0.0, 0.3), st.floats(0.0, 0.3))
def test_a_wider_margin_never_picks_a_dearer_rung_and_never_undoes_a_decision(
    rungs: list[Rung], one: float, other: float
) -> None:
    narrow, wide = judged_fast(rungs, min(one, other)), judged_fast(rungs, max(one, other))
    if narrow.chosen:
        assert wide.chosen
        assert cost(wide, wide.chosen) <= cost(narrow, narrow.chosen)


@settings(max_examples=25, deadline=None)
@given(ladders(), st.floats(0.01, 0.3))
def test_a_dominated_rung_changes_nothing(rungs: list[Rung], margin: float) -> None:
    best = max(rungs, key=lambda one: one.mean)
    dearest = max(one.use.seconds_per_request for one in rungs)
    worse = rung("big model", [0.0] * len(best.scores), seconds=1.0, paid=dearest + 1)
    if best.mean > 0.5:
        assert judged_fast([*rungs, worse], margin).chosen == judged_fast(rungs, margin).chosen


@settings(max_examples=25, deadline=None)
@given(ladders(), st.floats(0.0, 0.3), st.randoms())
def test_the_order_and_the_currency_change_nothing_and_the_chosen_is_no_dearer_than_the_best(
    rungs: list[Rung], margin: float, shuffler: random.Random
) -> None:
    verdict = judged_fast(rungs, margin)
    mixed = list(rungs)
    shuffler.shuffle(mixed)
    assert judged_fast(mixed, margin) == verdict
    assert judged_fast(rungs, margin, prices=Prices(per_hour=50.0)).chosen == verdict.chosen
    if verdict.chosen and verdict.best:
        assert cost(verdict, verdict.chosen) <= cost(verdict, verdict.best)
